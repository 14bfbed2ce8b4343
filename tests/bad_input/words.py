"""Wrong words on the command line: of every verb, and of the settings that a run takes."""

from __future__ import annotations

from tests.bad_input.case import RUN, TRAIN, Case, small

KEY = "key=value"
VERBS = {  # words with which each verb gets as far as its own flags
    "run": "",
    "validate": "",
    "list": "methods",
    "report": "",
    "compare": "a b",
    "efficiency": "",
    "prepare": "",
    "check-method": "coop",
    "new-method": "mine",
    "export-adapter": "cell --to x",
    "import-adapter": "file",
    "convert": "kad file",
    "reproduce": "cell",
}

UNKNOWN_FLAGS = [
    Case(
        f"{verb}: a flag with a typo",
        f"{verb} {words} --plugns x.py --outpt y",
        ("unknown flag '--plugns'.", "unknown flag '--outpt'."),
    )
    for verb, words in VERBS.items()
]
BROKEN_PLUGINS = [
    Case(
        f"{verb}: a plugin that is not there",
        f"{verb} {words} --plugins gone.py",
        "--plugins: file 'gone.py' does not exist",
        small,
    )
    for verb, words in {
        "run": RUN.removeprefix("run "),
        "validate": RUN.removeprefix("run "),
        "list": "methods",
        "efficiency": "",
        "prepare": "rsna --raw .",
        "check-method": "coop",
        "import-adapter": "f.pt --method ace_lora --to x",
    }.items()
]
NO_SETTINGS = [
    Case(f"{verb}: settings where none are taken", f"{verb} {words} lr=3", f"{verb} takes no 'lr=3'")
    for verb, words in VERBS.items()
    if verb
    in ("list", "report", "compare", "efficiency", "new-method", "export-adapter", "convert", "reproduce")
]

GENERAL = [
    Case("a verb with a typo", "lst methods", "unknown command 'lst'. Did you mean 'list'?"),
    Case("no verb at all", [""], "unknown command ''. Known: check-method"),
    Case("a verb and its object in one word", ["list methods"], "unknown command 'list methods'"),
    Case("a dash alone", "-", "unknown flag '-'"),
    Case("two dashes", "--", "unknown flag '--'"),
    Case("a short flag", "-m coop", "unknown flag '-m'"),
    Case("two verbs", "run list", "unexpected word 'list'"),
    Case("a flag without its value", "--suite", "--suite: expected one argument"),
    Case("a list flag without values", "--methods --seeds 1", "--methods: expected at least one argument"),
    Case("a switch with a value", "--overwrite=yes", "--overwrite: ignored explicit argument 'yes'"),
    Case(
        "a home folder of nobody",
        f"{RUN} --output-dir ~nobody-here/x",
        "--output-dir: expected a path without ~",
        small,
    ),
    Case("a suite below a home of nobody", "--suite ~nobody-here/s.yaml", "no user has this home folder"),
    Case("a folder name that is too long", ["report", "--output-dir", "a" * 5000], "File name too long"),
    Case("a text that is not UTF-8", ["--methods", "\udcff"], "unknown method"),
]

_SETTINGS = {
    "no method": ("--methods ,", "--methods: expected at least one name, got none"),
    "a method with a typo": (
        "--methods zero_shoot",
        "unknown method 'zero_shoot'. Did you mean 'zero_shot'?",
    ),
    "two methods with typos": ("--methods copo mapple", ("unknown method 'copo'", "unknown method 'mapple'")),
    "a glob that matches nothing": ("--methods zz*", "no method matches 'zz*'"),
    "a glob behind a family": ("--methods peft:*", "globs do not reach behind 'peft:'"),
    "a member of a method that has none": (
        "--methods coop:deep",
        "method 'coop' is no family: leave out ':deep'",
    ),
    "an unknown task": ("--tasks zeroshoot", "unknown task 'zeroshoot'. Did you mean 'zeroshot'?"),
    "a task without data in the suite": ("--tasks detection", "the suite has no data for task 'detection'"),
    "no task, and yet one": ("--tasks none,zeroshot", "unknown task 'none'"),
    "a negative seed": ("--seeds -1", "--seeds: expected a value of at least 0"),
    "a seed that is a text": ("--seeds 0,one", "--seeds: expected a whole number"),
    "a seed with a fraction": ("--seeds 1.5", "--seeds: expected a whole number"),
    "a seed beyond NumPy's": (f"--seeds {2**32}", "--seeds: expected a value of at most 4294967295"),
    "no seed": ("--seeds ,", "--seeds: expected at least one seed"),
    "no epoch": ("--epochs 0", "--epochs: expected a value of at least 1, got '0'"),
    "epochs that are no number": ("--epochs nan", "--epochs: expected a whole number"),
    "a batch of thousands of digits": (f"--batch-size {'9' * 5000}", "--batch-size: expected a whole number"),
    "a batch beyond 2^63": (f"--batch-size {10**30}", "--batch-size: expected a whole number below 2^63"),
    "a rate that is not finite": ("--lr inf", "--lr: expected a finite number"),
    "a rate of zero": ("--lr 0", "--lr: expected a value greater than 0"),
    "a rate in words": ("--lr fast", "--lr: expected a number, got 'fast'"),
    "an unknown loss": ("--loss clpi", "--loss: expected one of label_guided, clip (Did you mean 'clip'?)"),
    "an unknown precision": ("--precision fp8", "--precision: expected one of auto, fp32"),
    "an unknown device": ("--device gpu", "--device: expected auto, cpu, cuda or cuda:<i>, got 'gpu'"),
    "a GPU that is not there": ("--device cuda:99", "--device: 'cuda:99' does not exist"),
    "a negative number of loaders": ("--num-workers -1", "--num-workers: expected a value of at least 0"),
    "no job": ("--jobs 0", "--jobs: expected a value of at least 1"),
    "no sample": ("--limit 0", "--limit: expected a value of at least 1"),
    "an unknown baseline": (
        "--baseline zero_shut",
        "--baseline: unknown method 'zero_shut'. Did you mean 'zero_shot'?",
    ),
    "an unknown backbone": ("--backbone tinny", "--backbone: unknown backbone 'tinny'. Did you mean 'tiny'?"),
    "an unknown suite": ("--suite phantm", "--suite: unknown suite 'phantm'. Did you mean 'phantom'?"),
    "a suite file that is not there": ("--suite gone.yaml", "--suite: file 'gone.yaml' does not exist"),
    "a suite that is a folder": ("--suite films/", "--suite: file 'films/' does not exist"),
    "an output folder that is a file": (
        "--output-dir films.csv",
        "--output-dir: 'films.csv' cannot be written",
    ),
    "nothing to evaluate again": (
        "--eval-only",
        "--eval-only: no adapter in out/runs/small/tiny/zero_shot/seed-0",
    ),
    "a cell that is not planned": ("--cell coop/seed-0", "--cell: unknown cell 'coop/seed-0'"),
    "a format without a plan": ("--format sh", "--format: says how --dry-run prints the plan"),
    "an unknown format": ("--dry-run --format zsh", "unknown format 'zsh'"),
    "an unknown engine": ("--engine rey", "--engine: expected one of local, ray"),
}
SETTINGS = [Case(name, f"{RUN} {words}", says, small) for name, (words, says) in _SETTINGS.items()]

_BATCHES = {
    "a batch of one pair": (
        "--batch-size 1",
        "--batch-size: a batch of 1 pair leaves nothing to compare it with",
    ),
    "a corpus of one pair": (
        "--limit 1",
        "corpus 'csv' has 1 pair, and no other to compare it with: take a larger",
    ),
    "a corpus smaller than a batch": (
        "--batch-size 9",
        "corpus 'csv' has 4 pairs, fewer than one batch of 9: lower",
    ),
}
BATCHES = [Case(name, f"{TRAIN} {words}", says, small) for name, (words, says) in _BATCHES.items()]

_PAIRS = {
    "no key": ("=3", "expected key=value, got '=3'. Example"),
    "an empty part of a key": ("recipe..lr=3", "expected key=value, got 'recipe..lr=3'"),
    "a key of another language": ("Rate=3", "unknown key 'Rate'"),
    "a key with a typo": ("recipe.lrr=1", "recipe.lrr: unknown recipe key 'lrr'. Did you mean 'lr'?"),
    "no value": ("recipe.lr=", "recipe.lr: expected a number, got None"),
    "a list for a number": ("recipe.lr=[1,2]", "recipe.lr: expected a number, got [1, 2]"),
    "a number for a recipe": ("recipe=3", "recipe: expected common, authors, or keys and values, got 3"),
    "an unknown recipe": ("recipe=author", "recipe: expected one of common, authors"),
    "the thirteenth month": ("recipe.lr=2020-13-45", "recipe.lr: expected a number, got '2020-13-45'"),
    "a tag of Python": ("recipe.lr=!!python/name:os.system", "recipe.lr: expected a number"),
    "one beta": ("betas=0.9", "recipe.betas: expected 2 values, got 0.9"),
    "a beta of one": ("betas=[0.9,1]", "recipe.betas: expected a value below 1"),
    "a value above settings": ("recipe=common recipe.lr=-1", "recipe.lr: expected a value greater than 0"),
    "a number for a method": ("methods.coop=3", "methods.coop: expected keys and values, got 3"),
    "a number for a method's recipe": (
        "methods.coop.recipe=3",
        "methods.coop.recipe: expected keys and values",
    ),
    "settings of an unknown method": (
        "methods.cop.r=3",
        "methods.cop: unknown method 'cop'. Did you mean 'coop'?",
    ),
    "an unknown option": (
        "methods.zero_shot.r=3",
        "methods.zero_shot.r: unknown option of method 'zero_shot' 'r'",
    ),
    "a number for a task": ("tasks.zeroshot=3", "tasks.zeroshot: expected keys and values, got 3"),
    "a number for datasets": (
        "tasks.zeroshot.datasets=3",
        "tasks.zeroshot.datasets: expected keys and values, got 3",
    ),
    "a number for a dataset": (
        "tasks.zeroshot.datasets.films=3",
        "tasks.zeroshot.datasets.films: expected keys and",
    ),
    "an unknown option of a task": (
        "tasks.zeroshot.boots=3",
        "unknown option of task 'zeroshot' 'boots'. Did you mean",
    ),
    "no resample": ("tasks.zeroshot.bootstrap=0", "bootstrap: expected a positive integer, got 0"),
    "a number for the corpus": ("corpus=3", "corpus: expected keys and values, got 3"),
    "an unknown dataset": (
        "corpus.dataset=cvs",
        "corpus.dataset: unknown dataset 'cvs'. Did you mean 'csv'?",
    ),
    "an unknown key of a dataset": (
        "tasks.zeroshot.datasets.films.knd=x",
        "films.knd: unknown data key 'knd'. Did you",
    ),
    "a dataset without a name": (
        "tasks.zeroshot.datasets.more.part=x",
        "tasks.zeroshot.datasets.more: the key 'dataset'",
    ),
    "a size, which the backbone says": ("corpus.size=3", "corpus.size: unknown data key 'size'"),
    "half of what is not the corpus": (
        "validation.fraction=0.5",
        "validation.fraction: only the corpus can be cut",
    ),
    "more than all of the corpus": (
        "corpus.fraction=2",
        "corpus.fraction: expected a number above 0 and up to 1",
    ),
    "a negative limit": ("corpus.limit=-3", "corpus.limit: expected a value of at least 1, got -3"),
    "a limit in quotes": ("corpus.limit='\"5\"'", "corpus.limit: expected 5 without quotes, got '5'"),
    "an unknown policy": ("corpus.uncertain=maybe", "corpus.uncertain: expected one of zero, one, distinct"),
    "a file that is a number list": ("corpus.file=[1]", "corpus.file: expected a text, got [1]"),
    "no template": ("templates=[]", "the key 'templates' is missing"),
    "templates that are a number": ("templates=3", "templates: expected a list of prompts, got 3"),
    "a template without a place": (
        "templates=[hello]",
        "templates.1: expected a text with one {} for the class, got 'hello'",
    ),
    "an unknown validation task": (
        "validation.task=zershot",
        "validation.task: unknown task 'zershot'. Did you mean",
    ),
    "a task that cannot validate": (
        "validation.task=transclip",
        "validation.task: task 'Zero-shot classification with",
    ),
    "an unknown validation metric": ("validation.metric=acc", "validation.metric: unknown metric 'acc'"),
    "validation with two classes": (
        "validation.kind=binary validation.classes=[Edema,Effusion] validation.positive=Edema",
        "validation.kind: expected multiclass or multilabel, got 'binary'",
    ),
    "an unknown kind": (
        "tasks.zeroshot.datasets.films.kind=multi",
        "films.kind: expected one of multiclass, binary",
    ),
    "no class": (
        "tasks.zeroshot.datasets.films.classes=[]",
        "films.classes: expected a list of label names, got []",
    ),
    "a class twice": (
        "validation.classes=[Edema,Edema]",
        "validation.classes: the class 'Edema' stands there twice",
    ),
    "yes and no as classes": ("validation.classes=[Yes,No]", "(write Yes and No in quotes), got True"),
    "a binary set of three": (
        "tasks.zeroshot.datasets.films={kind: binary, classes: [a, b, c], positive: a}",
        "films.classes: expected two classes for kind binary, got 3",
    ),
    "a binary set without its positive": (
        "tasks.zeroshot.datasets.films.kind=binary",
        "films.kind: the key 'positive' is missing",
    ),
    "a positive that is no class": (
        "tasks.zeroshot.datasets.films={kind: binary, positive: Edma}",
        "films.positive: 'Edma' is none of the classes. Did you mean 'Edema'?",
    ),
    "a prompt for no class": (
        "validation.prompts={Edma: x}",
        "validation.prompts: 'Edma' is none of the classes",
    ),
    "a switch that is neither on nor off": ("dry_run=maybe", "dry_run: expected true or false, got 'maybe'"),
    "a plugin that is a number": ("plugins=3", "--plugins: no module '3' is installed"),
    "an own suite as a number": ("suite=3", "--suite: unknown suite '3'"),
}
PAIRS = [
    Case(
        f"{KEY}: {name}",
        [
            *RUN.split(),
            *(
                [words]
                if " " in words and "{" in words
                else words.replace("'\"", '"').replace("\"'", '"').split()
            ),
        ],
        says,
        small,
    )
    for name, (words, says) in _PAIRS.items()
]

CASES = [*UNKNOWN_FLAGS, *BROKEN_PLUGINS, *NO_SETTINGS, *GENERAL, *SETTINGS, *BATCHES, *PAIRS]
