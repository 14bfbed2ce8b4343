"""Wrong requests of single verbs, other than `run`."""

from __future__ import annotations

from tests.bad_input.case import RUN, Case, small

CASES = [
    Case("list: nothing", "list", "say what to list: methods, tasks"),
    Case("list: something unknown", "list metods", "unknown list 'metods'. Did you mean 'methods'?"),
    Case("list: two things", "list methods tasks", "unexpected word 'tasks'"),
    Case("list: a flag of another list", "list tasks --names", "--names goes with 'list methods'"),
    Case(
        "list: two forms at once", "list methods --names --all", "choose one of --names, --all and --markdown"
    ),
    Case("list: a suite that is not needed", "list tasks --suite phantom", "--suite goes with 'list tables'"),
    Case(
        "list: an unknown suite",
        "list tables --suite phantm",
        "unknown suite 'phantm'. Did you mean 'phantom'?",
    ),
    Case("report: an unknown format", "report --formats pfd", "unknown format 'pfd'"),
    Case("report: no results", "report --output-dir nowhere", "--output-dir: no results in 'nowhere'"),
    Case(
        "report: a file as folder",
        "report --output-dir s.yaml",
        "--output-dir: no results in 's.yaml'",
        small,
    ),
    Case("compare: one thing", "compare coop", "required: B"),
    Case("compare: no results", "compare coop zero_shot --output-dir none", "no results in 'none'"),
    Case("compare: a folder and a method", "compare ./a coop", "'./a' is a folder and 'coop' is not"),
    Case("compare: folders without results", "compare ./a ./b", "no results in 'a'"),
    Case(
        "efficiency: a batch of one",
        "efficiency --batch-size 1",
        "--batch-size: expected a value of at least 2, got 1",
    ),
    Case(
        "efficiency: a batch in words",
        "efficiency --batch-size big",
        "--batch-size: invalid int value: 'big'",
    ),
    Case(
        "efficiency: two flags wrong",
        "efficiency --rounds 0 --threads 0",
        ("--rounds: expected a value of at least 1", "--threads: expected a value of at least 1"),
    ),
    Case(
        "efficiency: an unknown method",
        "efficiency --methods coopp",
        "unknown method 'coopp'. Did you mean 'coop'?",
    ),
    Case(
        "efficiency: an unknown backbone",
        "efficiency --methods coop --backbone tinny",
        "unknown backbone 'tinny'",
    ),
    Case(
        "efficiency: too long a text",
        "efficiency --methods coop --backbone tiny --text-length 900",
        "--text-length: 'tiny' takes at most 64 tokens, got 900",
    ),
    Case("efficiency: an unknown architecture", "efficiency --backbone random:biomedclp", "biomedclp"),
    Case(
        "prepare: an unknown dataset", "prepare rnsa --raw .", "unknown dataset 'rnsa'. Did you mean 'rsna'?"
    ),
    Case("prepare: no folder", "prepare rsna", "--raw: say where the downloads are"),
    Case(
        "prepare: a folder that is not there",
        "prepare rsna --raw gone",
        "--raw: folder 'gone' does not exist",
    ),
    Case(
        "prepare: what needs no preparation",
        "prepare phantom --raw .",
        "dataset 'phantom' needs no preparation",
    ),
    Case("prepare: an unknown crop", "prepare rsna --raw . --crop squish", "Did you mean 'squash'?"),
    Case(
        "prepare: a size in words", "prepare rsna --raw . --size big", "--size: expected N or HxW, got 'big'"
    ),
    Case(
        "prepare: no worker",
        "prepare rsna --raw . --num-workers 0",
        "--num-workers: expected a value of at least 1",
    ),
    Case(
        "prepare: an unknown choice", "prepare rsna --raw . --on-bad-image ignore", "unknown choice 'ignore'"
    ),
    Case(
        "prepare: an unknown option",
        "prepare rsna --raw . --data-root data label=3",
        "unknown option of dataset 'rsna'",
    ),
    Case(
        "prepare: an option of another set",
        "prepare mimic_cxr --raw . --data-root data labels=gold",
        "labels",
    ),
    Case(
        "validate: a probe in words",
        f"{RUN.replace('run', 'validate', 1)} --probe=many",
        "--probe: expected a whole number",
        small,
    ),
    Case(
        "validate: a probe of one",
        f"{RUN.replace('run', 'validate', 1)} --probe=1",
        "--probe: expected a value of at least 2",
        small,
    ),
    Case(
        "validate: a wrong setting",
        f"{RUN.replace('run', 'validate', 1)} --lr 0",
        "--lr: expected a value greater than 0",
        small,
    ),
    Case("check-method: no method", "check-method", "say which method to check"),
    Case(
        "check-method: an unknown method",
        "check-method coopp",
        "unknown method 'coopp'. Did you mean 'coop'?",
    ),
    Case("check-method: a file that is not there", "check-method gone.py", "file 'gone.py' does not exist"),
    Case(
        "check-method: an unknown option",
        "check-method clip_lora rr=2",
        "unknown option 'rr'. Did you mean 'r'?",
    ),
    Case(
        "check-method: a value that is none",
        "check-method clip_lora r=many",
        "r: expected a whole number, got 'many'",
    ),
    Case(
        "check-method: a value that makes no sense",
        "check-method clip_lora r=0",
        "r: expected a positive integer, got 0",
    ),
    Case("check-method: an unknown check", "check-method coop --only speed", "--only: unknown check 'speed'"),
    Case("check-method: no value at all", "check-method coop =3", "expected key=value, got '=3'"),
    Case("new-method: no name", "new-method", "say how the method is called"),
    Case("new-method: capitals", "new-method TextGain", "'TextGain' is no short name in snake_case"),
    Case("new-method: a path", "new-method ../mine", "'../mine' is no short name in snake_case"),
    Case("new-method: a word of Python", "new-method class", "'class' is a word of Python"),
    Case("new-method: a word that is one in capitals", "new-method none", "'none' is a word of Python"),
    Case("new-method: a name that is taken", "new-method coop", "'coop' is a method already"),
    Case("new-method: a module's name", "new-method random", "'random' is the name of an installed module"),
    Case("new-method: a file in the way", "new-method mine --to s.yaml", "cannot be written", small),
    Case("export-adapter: nothing", "export-adapter", ("say which cell", "--to: say where the folder goes")),
    Case(
        "export-adapter: no cell", "export-adapter films --to x", "'films' is not the folder of a cell", small
    ),
    Case(
        "import-adapter: nothing",
        "import-adapter",
        "import-adapter: say a checkpoint or folder, --method, --to",
    ),
    Case(
        "import-adapter: an unknown method",
        "import-adapter s.yaml --method cop --to x",
        "unknown method 'cop'",
        small,
    ),
    Case(
        "import-adapter: two seeds",
        "import-adapter s.yaml --method coop --to x --seeds 1 2",
        "one file is one cell",
        small,
    ),
    Case(
        "import-adapter: no file",
        "import-adapter gone.pt --method ace_lora --to x",
        "'gone.pt' does not exist",
    ),
    Case("convert: nothing", "convert", "say which model: convert MODEL FILE"),
    Case("convert: no file", "convert kad", "say which file: convert kad FILE"),
    Case("convert: an unknown model", "convert kadd gone.pt", "unknown"),
    Case("convert: a file that is not there", "convert kad gone.pt", "gone.pt"),
    Case("reproduce: nothing", "reproduce", "say which cell: runs/<suite>/<backbone>/<method>/seed-<n>"),
    Case("reproduce: no cell", "reproduce films", "films", small),
    Case(
        "reproduce: a tolerance in words",
        "reproduce films --tolerance little",
        "--tolerance: expected a number",
        small,
    ),
]
