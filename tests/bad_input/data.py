"""Wrong data: CSV files of one's own, raw folders with images, masks and boxes."""

from __future__ import annotations

from collections.abc import Callable

from tests.bad_input.case import RUN, TRAIN, Case, Setup, changed, files, picture, small, suite, together

HTML = b"<!DOCTYPE html>\n<html><body>Log in</body></html>\n"


# ---------------------------------------------------------------------- a CSV file of one's own
def _films(old: str, new: str) -> Setup:
    return changed("films.csv", old, new)


def _entry(old: str, new: str) -> Setup:
    return changed("s.yaml", old, new)


def _gone(name: str) -> Setup:
    return together(small, lambda folder: (folder / name).unlink())


_CORPUS = "text_column: report, part: train"
_TEST = "part: test, kind: multilabel, classes: [Edema, Effusion]"
_CSV: dict[str, tuple[Setup, str]] = {
    "is not there": (
        _gone("films.csv"),
        "films.csv: cannot be read (No such file or directory); relative paths begin at",
    ),
    "is empty": (together(small, files(films__csv="")), "films.csv: row 1: no column 'path' (path_column)"),
    "has a header alone": (
        together(small, files(films__csv="path,report,split\n")),
        "films.csv: has no rows",
    ),
    "is UTF-16": (together(small, files(films__csv="path\na".encode("utf-16"))), "films.csv: not UTF-8 text"),
    "is a page of the web": (together(small, files(films__csv=HTML)), "films.csv: row 1: no column 'path'"),
    "has zero bytes": (
        _films("Report 3.", "Report\0 3."),
        "films.csv: line 5: a zero byte, which no text has",
    ),
    "has a field of a million characters": (
        _films("Report 3.", "x" * 10**6),
        "films.csv: cannot be read as CSV (field larger",
    ),
    "has a quote that does not end": (_films("Report 0.", '"Report 0.'), "films.csv: row"),
    "has no column of paths": (_films("path,", "file,"), "films.csv: row 1: no column 'path' (path_column)."),
    "has a column twice": (
        _films("Edema,Effusion", "Edema,Edema"),
        "films.csv: row 1: column 'Edema' occurs twice",
    ),
    "has a row too short": (_films(",p1,", ","), "films.csv: row 4: 6 cells instead of 7"),
    "has a row without a path": (_films("films/4.png", ""), "films.csv: row 6, column 'path': empty"),
    "has a path twice": (
        _films("films/4.png", "films/3.png"),
        "films.csv: row 6, column 'path': 'films/3.png' stands in row 5",
    ),
    "names an image that is not there": (
        _gone("films/7.png"),
        "films.csv: row 9, column 'path': no image 'films/7.png'",
    ),
    "names a folder as image": (
        _films("films/7.png", "films"),
        "films.csv: row 9, column 'path': image 'films': cannot be read (Is a directory)",
    ),
    "has a label of two": (
        _films("p2,edema,1,0", "p2,edema,2,0"),
        "films.csv: row 6, column 'Edema': expected 1, 0, -1 or empty",
    ),
    "has a text without words": (_films("Report 3.", "  "), "films.csv: row 5, column 'report': empty text"),
    "lacks the column of texts": (
        _entry("text_column: report", "text_column: reprot"),
        "no column 'reprot' (text_column). Did",
    ),
    "has no text for a corpus": (_entry("text_column: report, ", ""), "films.csv: column 'text' is missing"),
    "lacks the part": (
        _entry("part: train", "part: tran"),
        "films.csv: unknown part 'tran'. Did you mean 'train'?",
    ),
    "lacks the column of parts": (
        _entry(_CORPUS, _CORPUS + ", split_column: fold"),
        "no column 'fold' (split_column)",
    ),
    "lacks a label": (
        _entry("[Edema, Effusion]", "[Edema, Efusion]"),
        "films.csv: unknown label 'Efusion'. Known: Edema",
    ),
    "has a class that the suite does not name": (
        _entry(_TEST, "part: test, kind: multiclass, class_column: finding, classes: [edema, normal]"),
        "column 'finding': unknown class 'effusion'",
    ),
    "has several classes in a row": (
        _entry(_TEST, "part: test, kind: multiclass, classes: [Edema, Effusion], label_columns: [Edema]"),
        "films.csv: unknown label 'Effusion'",
    ),
    "is read by classes and labels at once": (
        _entry(_TEST, _TEST + ", class_column: finding, label_columns: [Edema]"),
        "films: csv: give class_column or label_columns, not both",
    ),
    "is read with an unknown choice": (
        _entry(_TEST, _TEST + ", on_bad_image: ignore"),
        "films.on_bad_image: expected one of error, skip",
    ),
    "is read with an unknown crop": (
        _entry(_TEST, _TEST + ", crop: squish"),
        "films.crop: expected one of squash, shortest_crop, longest_pad (Did you mean 'squash'?)",
    ),
    "is in a folder of nobody": (
        _entry("csv, file: films.csv, part: val", "csv, file: ~nobody-here/f.csv"),
        "no user has this",
    ),
}
CSV = [
    Case(f"a CSV file that {name}", TRAIN, says, setup, ("data/csv/*",))
    for name, (setup, says) in _CSV.items()
]  # without texts it may still be what classes are learnt from: its images are prepared


# ---------------------------------------------------------------------- downloads
def _siim(rows: str = "", *, images: dict[str, bytes] | None = None, count: int = 4) -> Setup:
    named = {f"i{n}": picture(n) for n in range(count)} | (images or {})
    table = "ImageId,EncodedPixels\n" + "".join(
        f"{name},{'1 2' if n % 2 else '-1'}\n" for n, name in enumerate(named)
    )
    written = {f"raw/png/{name}.png": content for name, content in named.items()}
    return files({"raw/stage_2_train.csv": table + rows, **written})


def _rsna(rows: str, *, header: str = "patientId,x,y,width,height,Target") -> Setup:
    table = f"{header}\ni0,,,,,0\ni1,1,2,3,4,1\n{rows}"
    return files(
        {
            "raw/stage_2_train_labels.csv": table,
            **{f"raw/stage_2_train_images/i{n}.png": picture(n) for n in range(3)},
        }
    )


def _png(change: Callable[[bytes], bytes]) -> Setup:
    return _siim(images={"i9": change(picture(9))})


_PREPARE = "prepare {} --raw raw --data-root data --size 8 --num-workers 1 --accept-split"
_SIIM: dict[str, tuple[Setup, str, bool]] = {  # setup, what is said, and whether work has begun by then
    "nothing in their folder": (lambda folder: (folder / "raw").mkdir(), "holds nothing", False),
    "a table that is a page of the web": (
        together(_siim(), files({"raw/stage_2_train.csv": HTML})),
        "is a web page, not the file",
        False,
    ),
    "a table that is cut off": (
        files({"raw/stage_2_train.csv.gz": b"\x1f\x8b\x08\x00cut"}),
        "cannot be read as CSV",
        False,
    ),
    "an image less than the table has": (
        _siim("gone,-1\n"),
        "1 of 5 image files are missing or empty: 'dicom-images-train/",
        False,
    ),
    "an image of no bytes": (_siim(images={"i9": b""}), "1 of 5 image files are missing or empty", False),
    "a mask that is no code": (
        _siim("i0,one two\n"),
        "'one two' is not a run-length code of 1024x1024 pixels",
        True,
    ),
    "a mask of thousands of digits": (_siim(f"i0,1 {'9' * 5000}\n"), "is not a run-length code", True),
    "an image that is a page of the web": (
        _siim(images={"i9": HTML}),
        "i9.png: a web page, not the file",
        True,
    ),
    "an image with a wrong byte": (
        _png(lambda whole: whole[:45] + b"\xff" + whole[46:]),
        "i9.png: damaged or truncated image",
        True,
    ),
}
_RSNA: dict[str, tuple[Setup, str]] = {
    "a box in words": (
        _rsna("i2,a,2,3,4,1\n"),
        "stage_2_train_labels.csv: row 4: Target must be 1 where a box stands",
    ),
    "a box without width": (_rsna("i2,1,2,0,4,1\n"), "row 4: Target must be 1 where a box stands"),
    "a box of an image without": (_rsna("i2,1,2,3,4,0\n"), "row 4: Target must be 1 where a box stands"),
    "a box that is not finite": (
        _rsna("i2,1,inf,3,4,1\n"),
        "boxes of image 'i2': expected [[x1, y1, x2, y2], ...]",
    ),
    "columns of another table": (
        _rsna("", header="patientId,x"),
        "column y, width, height, Target is missing",
    ),
}
RAW = [
    *(
        Case(
            f"downloads with {name}", _PREPARE.format("siim"), says, setup, ("data/siim/*",) if begun else ()
        )
        for name, (setup, says, begun) in _SIIM.items()
    ),
    *(
        Case(f"downloads with {name}", _PREPARE.format("rsna"), says, setup)
        for name, (setup, says) in _RSNA.items()
    ),
    Case(
        "downloads that are a file",
        "prepare siim --raw s.yaml",
        "--raw: folder 's.yaml' does not exist",
        small,
    ),
    Case(
        "downloads prepared into a file",
        "prepare siim --raw raw --data-root s.yaml --accept-split",
        "s.yaml/siim",
        together(small, _siim()),
    ),
    Case(
        "downloads that are not the published ones",
        "prepare siim --raw raw --data-root data",
        "siim: list 'all' is not the published split: 4 ids instead of 12,047",
        _siim(),
    ),
]


# ---------------------------------------------------------------------- drawn data
def _drawn(**keys: object) -> Setup:
    view = {"kind": "binary", "classes": ["No Finding", "Pneumonia"], "positive": "Pneumonia"}
    entry = {"dataset": "phantom", "part": "rsna", **view, **keys}
    return suite(tasks={"zeroshot": {"datasets": {"drawn": entry}}})


DRAWN = [
    Case(
        "drawn data without images",
        RUN,
        "drawn.n: expected a value of at least 1, got 0",
        _drawn(n=0),
    ),
    Case(
        "drawn data of a negative seed",
        RUN,
        "drawn.seed: expected a value of at least 0, got -1",
        _drawn(seed=-1),
    ),
    Case(
        "drawn data of an unknown part",
        RUN,
        "unknown part of dataset phantom 'rsan'. Did you mean 'rsna'?",
        _drawn(part="rsan"),
    ),
    Case(
        "drawn data that cannot be kept",
        f"{RUN} --data-root films.csv",
        "cannot be written ([Errno 20] Not a directory: 'films.csv/phantom'); choose another --data-root",
        _drawn(),
    ),
]

CASES = [*CSV, *RAW, *DRAWN]
