"""Wrong words on the command line: of every verb, and of the settings that a run takes."""

from __future__ import annotations

from tests.bad_input.case import RUN, TRAIN, Case, Says, small

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

_SETTINGS: dict[str, Says] = {
    "--methods ,": "--methods: expected at least one name, got none",
    "--methods zero_shoot": "unknown method 'zero_shoot'. Did you mean 'zero_shot'?",
    "--methods copo mapple": ("unknown method 'copo'", "unknown method 'mapple'"),
    "--methods zz*": "no method matches 'zz*'",
    "--methods peft:*": "globs do not reach behind 'peft:'",
    "--methods coop:deep": "method 'coop' is no family: leave out ':deep'",
    "--tasks zeroshoot": "unknown task 'zeroshoot'. Did you mean 'zeroshot'?",
    "--tasks detection": "the suite has no data for task 'detection'",
    "--tasks none,zeroshot": "unknown task 'none'",
    "--seeds -1": "--seeds: expected a value of at least 0",
    "--seeds 0,one": "--seeds: expected a whole number",
    "--seeds 1.5": "--seeds: expected a whole number",
    f"--seeds {2**32}": "--seeds: expected a value of at most 4294967295",
    "--seeds ,": "--seeds: expected at least one seed",
    "--epochs 0": "--epochs: expected a value of at least 1, got '0'",
    "--epochs nan": "--epochs: expected a whole number",
    f"--batch-size {'9' * 5000}": "--batch-size: expected a whole number",
    f"--batch-size {10**30}": "--batch-size: expected a whole number below 2^63",
    "--lr inf": "--lr: expected a finite number",
    "--lr 0": "--lr: expected a value greater than 0",
    "--lr fast": "--lr: expected a number, got 'fast'",
    "--loss clpi": "--loss: expected one of label_guided, clip, focal (Did you mean 'clip'?)",
    "--precision fp8": "--precision: expected one of auto, fp32",
    "--device gpu": "--device: expected auto, cpu, cuda or cuda:<i>, got 'gpu'",
    "--device cuda:99": "--device: 'cuda:99' does not exist",
    "--num-workers -1": "--num-workers: expected a value of at least 0",
    "--num-workers 100000": "--num-workers: expected a value of at most 256",
    "--jobs 100000": "--jobs: expected a value of at most 256",
    "--jobs 0": "--jobs: expected a value of at least 1",
    "--limit 0": "--limit: expected a value of at least 1",
    "--baseline zero_shut": "--baseline: unknown method 'zero_shut'. Did you mean 'zero_shot'?",
    "--backbone tinny": "--backbone: unknown backbone 'tinny'. Did you mean 'tiny'?",
    "--suite phantm": "--suite: unknown suite 'phantm'. Did you mean 'phantom'?",
    "--suite gone.yaml": "--suite: file 'gone.yaml' does not exist",
    "--suite films/": "--suite: file 'films/' does not exist",
    "--output-dir films.csv": "--output-dir: 'films.csv' cannot be written",
    "--eval-only": "--eval-only: no adapter in out/runs/small/tiny/zero_shot/seed-0",
    "--cell coop/seed-0": "--cell: unknown cell 'coop/seed-0'",
    "--format sh": "--format: says how --dry-run prints the plan",
    "--dry-run --format zsh": "unknown format 'zsh'",
    "--engine rey": "--engine: expected one of local, ray",
}
SETTINGS = [Case(words, f"{RUN} {words}", says, small) for words, says in _SETTINGS.items()]

_BATCHES: dict[str, Says] = {
    "--batch-size 1": "--batch-size: a batch of 1 pair leaves nothing to compare it with",
    "--limit 1": "corpus 'csv' has 1 pair, and no other to compare it with: take a larger",
    "--batch-size 9": "corpus 'csv' has 4 pairs, fewer than one batch of 9: lower",
}
BATCHES = [
    Case(f"train: {words}", f"{TRAIN} {words}", says, small, ("data/csv/*",))
    for words, says in _BATCHES.items()
]

_FILMS = "tasks.zeroshot.datasets.films"
_PAIRS: dict[str, Says] = {
    "=3": "expected key=value, got '=3'. Example",
    "recipe..lr=3": "expected key=value, got 'recipe..lr=3'",
    "Rate=3": "unknown key 'Rate'",
    "recipe.lrr=1": "recipe.lrr: unknown recipe key 'lrr'. Did you mean 'lr'?",
    "recipe.lr=": "recipe.lr: expected a number, got None",
    "recipe.lr=[1,2]": "recipe.lr: expected a number, got [1, 2]",
    "recipe=3": "recipe: expected common, authors, or keys and values, got 3",
    "recipe=author": "recipe: expected one of common, authors",
    "recipe.lr=2020-13-45": "recipe.lr: expected a number, got '2020-13-45'",
    "recipe.lr=!!python/name:os.system": "recipe.lr: expected a number",
    "betas=0.9": "recipe.betas: expected 2 values, got 0.9",
    "betas=[0.9,1]": "recipe.betas: expected a value below 1",
    "recipe=common recipe.lr=-1": "recipe.lr: expected a value greater than 0",
    "methods.coop=3": "methods.coop: expected keys and values, got 3",
    "methods.coop.recipe=3": "methods.coop.recipe: expected keys and values",
    "methods.cop.r=3": "methods.cop: unknown method 'cop'. Did you mean 'coop'?",
    "methods.zero_shot.r=3": "methods.zero_shot.r: unknown option of method 'zero_shot' 'r'",
    "tasks.zeroshot=3": "tasks.zeroshot: expected keys and values, got 3",
    "tasks.zeroshot.datasets=3": "tasks.zeroshot.datasets: expected keys and values, got 3",
    "tasks.zeroshot.datasets.films=3": "tasks.zeroshot.datasets.films: expected keys and",
    "tasks.zeroshot.boots=3": "unknown option of task 'zeroshot' 'boots'. Did you mean",
    "tasks.zeroshot.bootstrap=0": "bootstrap: expected a value of at least 1, got 0",
    "tasks.zeroshot.bootstrap=1000000000": "bootstrap: expected a value of at most 100000",
    "corpus=3": "corpus: expected keys and values, got 3",
    "corpus.dataset=cvs": "corpus.dataset: unknown dataset 'cvs'. Did you mean 'csv'?",
    "tasks.zeroshot.datasets.films.knd=x": "films.knd: unknown data key 'knd'. Did you",
    "tasks.zeroshot.datasets.more.part=x": "tasks.zeroshot.datasets.more: the key 'dataset'",
    "corpus.size=3": "corpus.size: unknown data key 'size'",
    "validation.fraction=0.5": "validation.fraction: only the corpus can be cut",
    "corpus.fraction=2": "corpus.fraction: expected a number above 0 and up to 1",
    "corpus.fraction=0": "corpus.fraction: expected a number above 0 and up to 1",
    "corpus.fraction=-1": "corpus.fraction: expected a number above 0 and up to 1",
    "corpus.fraction=much": "corpus.fraction: expected a number above 0 and up to 1",
    "corpus.fraction=true": "corpus.fraction: expected a number above 0 and up to 1",
    "corpus.limit=-3": "corpus.limit: expected a value of at least 1, got -3",
    'corpus.limit="5"': "corpus.limit: expected 5 without quotes, got '5'",
    "corpus.uncertain=maybe": "corpus.uncertain: expected one of zero, one, distinct",
    "corpus.file=[1]": "corpus.file: expected a text, got [1]",
    "tasks.zeroshot.datasets={a/../../x: {dataset: csv}}": "datasets.a/../../x: expected a name of 1 to 100",
    f"tasks.zeroshot.datasets.{'x' * 300}.dataset=csv": "expected a name of 1 to 100 printable characters",
    "templates=[]": "the key 'templates' is missing",
    "templates=3": "templates: expected a list of prompts, got 3",
    "templates=[hello]": "templates.1: expected a text with one {} for the class, got 'hello'",
    "validation.task=zershot": "validation.task: unknown task 'zershot'. Did you mean",
    "validation.task=transclip": "validation.task: task 'Zero-shot classification with",
    "validation.metric=acc": "validation.metric: unknown metric 'acc'",
    "validation.kind=binary validation.classes=[A,B] validation.positive=A": "validation.kind: expected multiclass",
    "tasks.zeroshot.datasets.films.kind=multi": "films.kind: expected one of multiclass, binary",
    "tasks.zeroshot.datasets.films.classes=[]": "films.classes: expected a list of label names, got []",
    "validation.classes=[Edema,Edema]": "validation.classes: the class 'Edema' occurs twice",
    "validation.classes=[Yes,No]": "(write Yes and No in quotes), got True",
    _FILMS
    + "={kind: binary, classes: [a, b, c], positive: a}": "films.classes: expected two classes for kind binary, got 3",
    "tasks.zeroshot.datasets.films.kind=binary": "films.kind: the key 'positive' is missing",
    _FILMS
    + "={kind: binary, positive: Edma}": "films.positive: 'Edma' is not one of the classes. Did you mean 'Edema'?",
    "validation.prompts={Edma: x}": "validation.prompts: 'Edma' is not one of the classes",
    "dry_run=maybe": "dry_run: expected true or false, got 'maybe'",
    "plugins=3": "--plugins: no module '3' is installed",
    "suite=3": "--suite: unknown suite '3'",
}
PAIRS = [
    Case(words, [*RUN.split(), *([words] if "{" in words else words.split())], says, small)
    for words, says in _PAIRS.items()
]

CASES = [*UNKNOWN_FLAGS, *BROKEN_PLUGINS, *NO_SETTINGS, *GENERAL, *SETTINGS, *BATCHES, *PAIRS]
