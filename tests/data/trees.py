"""Tiny raw folders in the exact layout of the published datasets, for tests of readers and of whole runs.

File names, CSV columns and their order, blanks, several boxes per image, missing reports and odd pixels are as in the
real downloads; only the images are small and their number is.
"""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image

CHEXPERT = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"),
    *("Fracture", "Support Devices"),
)
FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
NIH = (
    *(
        "Atelectasis",
        "Cardiomegaly",
        "Effusion",
        "Infiltration",
        "Mass",
        "Nodule",
        "Pneumonia",
        "Pneumothorax",
    ),
    *("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
)
LC25000 = {
    "lung_aca": "lungaca",
    "lung_n": "lungn",
    "lung_scc": "lungscc",
    "colon_aca": "colonca",
    "colon_n": "colonn",
}
NIH_SLICE, RSNA_IMAGES, SIIM_IMAGES = 21, 60, 60


def make_radiology(root: Path) -> dict[str, Path]:
    """Write the raw folders of the suite ``radiology``; return dataset -> folder."""
    makers = {
        "mimic_cxr": make_mimic,
        "chexpert_5x200": make_chexpert,
        "rsna": make_rsna,
        "siim": make_siim,
        "nih": make_nih,
    }
    return {name: make(root / name) for name, make in makers.items()}


def make_histopathology(root: Path) -> dict[str, Path]:
    """Write the raw folders of the suite ``histopathology``; return dataset -> folder."""
    makers = {"pmc_oa": make_pmc_oa, "lc25000": make_lc25000, "mhist": make_mhist}
    return {name: make(root / name) for name, make in makers.items()}


# --- single files -------------------------------------------------------------------------------------------


def pixels(seed: int, height: int = 64, width: int = 64, top: int = 255) -> np.ndarray:
    """Return random grey pixels on a gradient, so that no two images are equal."""
    noise = np.random.default_rng(seed).integers(0, top // 2 + 1, (height, width))
    return (noise + np.linspace(0, top // 2, width).astype(int)).astype(np.uint8 if top < 256 else np.uint16)


def write_image(path: Path, seed: int, *, height: int = 64, width: int = 64, mode: str = "L") -> None:
    """Write a PNG or JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels(seed, height, width)).convert(mode).save(path)


def write_dicom(path: Path, values: np.ndarray, *, inverted: bool = False) -> None:
    """Write an uncompressed DICOM file of uint8 or uint16 values; inverted ones are MONOCHROME1."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.276.0.7230010.3.1.4.1"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.Modality = "CR"
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * values.dtype.itemsize
    data.HighBit = data.BitsStored - 1
    data.add_new("PixelData", "OB" if values.dtype == np.uint8 else "OW", values.tobytes())
    data.save_as(path, enforce_file_format=True)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file, packed when its name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def runs(mask: np.ndarray) -> str:
    """Return the run-length code of a mask: columns first, every offset from the end of the run before."""
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
    starts, stops = edges[::2], edges[1::2]
    offsets = starts - np.concatenate([[0], stops[:-1]])
    return " ".join(f"{offset} {length}" for offset, length in zip(offsets, stops - starts, strict=True))


# --- MIMIC-CXR ----------------------------------------------------------------------------------------------

REPORT = """\
                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___ year old woman with cough  // {question}
 
 COMPARISON:  ___.
 
 FINDINGS: 
 
 Study {study} shows {finding}.  The heart is of
 normal size.
 
 IMPRESSION: 
 
 {finding} on this film.
"""  # noqa: W291, W293  as PhysioNet has it
SHORT = " FINAL REPORT\n IMPRESSION: Normal.\n"
VIEWS = ("PA", "AP", "LATERAL", "PA", "AP", "PA", "", "AP")
METADATA = (
    *(
        "dicom_id",
        "subject_id",
        "study_id",
        "PerformedProcedureStepDescription",
        "ViewPosition",
        "Rows",
        "Columns",
    ),
    *("StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning"),
    "PatientOrientationCodeSequence_CodeMeaning",
)


def make_mimic(folder: Path, *, reports: str = "beside", packed: bool = True, studies: int = 48) -> Path:
    """Write MIMIC-CXR-JPG with reports.

    Study 3 has no report file, study 5 a report of one word, study 7 no labels, study 9 labels that are all blank.

    Args:
        folder: is made.
        reports: "beside" the study folders, in their "own" tree, as a "zip", "sectioned", or "none".
        packed: tables end in .gz.
        studies: number of studies; study i has one image of view i % 8, and every fourth one a second, lateral one.
    """
    metadata, split, labels, texts = [], [], [], {}
    for i in range(studies):
        subject, study = f"{10 + i % 3}{i // 2:06d}", f"5{i:07d}"
        place = folder / f"files/p{subject[:2]}/p{subject}/s{study}"
        part = "test" if i % 12 == 11 else "validate" if i % 12 == 5 else "train"
        for j, view in enumerate((VIEWS[i % 8], "LATERAL")[: 1 + (i % 4 == 0)]):
            dicom = f"{i:08x}-{j:08x}-0a0a0a0a-0b0b0b0b-0c0c0c0c"
            write_image(place / f"{dicom}.jpg", 100 * i + j, height=80, width=64 + 4 * (i % 3))
            metadata.append(
                [dicom, subject, study, "CHEST (PA AND LAT)", view, 80, 64, 21800506, 213014.531, "", "", ""]
            )
            split.append([dicom, study, subject, part])
        finding = CHEXPERT[i % 14]
        if i != 7:
            labels.append(
                [subject, study, *_labels(sorted(CHEXPERT), finding, uncertain=i % 5 == 0, blank=i == 9)]
            )
        if i != 3:
            text = SHORT if i == 5 else REPORT.format(study=study, finding=finding.lower(), question="eval")
            texts[f"files/p{subject[:2]}/p{subject}/s{study}.txt"] = text
    end = ".csv.gz" if packed else ".csv"
    write_csv(folder / f"mimic-cxr-2.0.0-metadata{end}", METADATA, metadata)
    write_csv(folder / f"mimic-cxr-2.0.0-split{end}", ("dicom_id", "study_id", "subject_id", "split"), split)
    # the label table is in its own order, which must not matter
    columns = ("subject_id", "study_id", *sorted(CHEXPERT))
    write_csv(folder / f"mimic-cxr-2.0.0-chexpert{end}", columns, labels[::-1])
    _write_reports(folder, reports, texts)
    return folder


def _labels(names: Sequence[str], finding: str, *, uncertain: bool, blank: bool) -> list[str]:
    values = {name: "" for name in names}
    if not blank:
        values["Pneumonia"] = "-1.0" if uncertain else "0.0"
        values[finding] = "1.0"
    return [values[name] for name in names]


def _write_reports(folder: Path, form: str, texts: Mapping[str, str]) -> None:
    if form == "zip":
        with zipfile.ZipFile(folder / "mimic-cxr-reports.zip", "w") as archive:
            for name, text in texts.items():
                archive.writestr(name, text)
    elif form == "sectioned":
        rows = [[Path(name).stem, f"{Path(name).stem} is clear", "", "", ""] for name in texts]
        header = ("study", "impression", "findings", "last_paragraph", "comparison")
        write_csv(folder / "mimic_cxr_sectioned.csv", header, rows)
    elif form in ("beside", "own"):
        for name, text in texts.items():
            path = folder / ("mimic-cxr-reports" if form == "own" else "") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


# --- CheXpert 5x200 -----------------------------------------------------------------------------------------


def make_chexpert(folder: Path, *, per_class: int = 4, release: str = "CheXpert-v1.0-small") -> Path:
    """Write the list, the training table and the images below ``release``; the list has the prefix of the full one."""
    header = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT)
    listed = []
    for i in range(5 * per_class):
        inner = f"train/patient{1 + i // 2:05d}/study{1 + i % 2}/view1_frontal.jpg"
        write_image(folder / release / inner, 7000 + i, height=64 + i % 9, width=72)
        values = {name: "" for name in CHEXPERT} | {FIVE[i % 5]: "1.0"} | {"Fracture": "0.0"}
        row = [
            f"CheXpert-v1.0/{inner}",
            "Female",
            60,
            "Frontal",
            ("AP", "PA")[i % 2],
            *(values[n] for n in CHEXPERT),
        ]
        listed.append(row)
    lateral = [
        listed[0][0].replace("view1_frontal", "view2_lateral"),
        "Female",
        60,
        "Lateral",
        "",
        *listed[0][5:],
    ]
    unsure = [*listed[1]]
    unsure[0] = "CheXpert-v1.0/train/patient09999/study1/view1_frontal.jpg"
    unsure[header.index("Lung Opacity")] = "-1.0"
    write_csv(folder / release / "train.csv", header, [*listed, lateral, unsure])
    rows = [[i, *row, "no report"] for i, row in enumerate(listed)]
    write_csv(folder / "chexpert_5x200.csv", ("", *header, "Report Impression"), rows)
    return folder


# --- RSNA ---------------------------------------------------------------------------------------------------


def rsna_id(i: int) -> str:
    """Return an image id as RSNA has them, in an order unlike that of ``i``."""
    return f"{(i * 2654435761) % 2**32:08x}-{i:04x}-4a2b-9c3d-{i * 7919:012x}"


def nih_name(i: int) -> str:
    """Return a file name of NIH: two images per patient."""
    return f"{1 + i // 2:08d}_{i % 2:03d}.png"


def make_rsna(folder: Path, *, mapping: bool = True) -> Path:
    """Write stage 2: every third image has one box, every ninth two; a few are 16 bits deep or MONOCHROME1."""
    rows, classes, mappings = [], [], []
    for i in range(RSNA_IMAGES):
        item = rsna_id(i)
        deep = pixels(i, top=4095) if i % 10 == 1 else pixels(i)
        write_dicom(folder / "stage_2_train_images" / f"{item}.dcm", deep, inverted=i % 10 == 2)
        boxes = [[10.0, 12.0, 20.0, 30.0], [40.0, 8.5, 16.0, 40.0]][
            : (2 if i % 9 == 0 else 1) if i % 3 == 0 else 0
        ]
        rows += [[item, *box, 1] for box in boxes] or [[item, "", "", "", "", 0]]
        name = "Lung Opacity" if boxes else ("Normal", "No Lung Opacity / Not Normal")[i % 2]
        classes += [[item, name]] * max(1, len(boxes))
        mappings.append({"subset_img_id": item, "img_id": nih_name(2 * i), "orig_labels": []})
    write_dicom(folder / "stage_2_test_images" / "0000a175-0e68-4ca4-b1af-167204a7e0bc.dcm", pixels(1))
    write_csv(folder / "stage_2_train_labels.csv", ("patientId", "x", "y", "width", "height", "Target"), rows)
    write_csv(folder / "stage_2_detailed_class_info.csv", ("patientId", "class"), classes)
    if mapping:
        path = folder / "pneumonia-challenge-dataset-mappings_2018.json"
        path.write_text(json.dumps(mappings), encoding="utf-8")
    return folder


# --- SIIM ---------------------------------------------------------------------------------------------------


def siim_id(i: int) -> str:
    """Return an image id as SIIM has them."""
    return f"1.2.276.0.7230010.3.1.4.8323329.{1000 + (i * 37) % 997}.1517875{160 + i}.{i:06d}"


@cache
def _siim_code(i: int, lesion: int) -> str:
    return runs(siim_mask(i, lesion))


def siim_mask(i: int, lesion: int = 0) -> np.ndarray:
    """Return a lesion of image i on the 1024 square."""
    mask = np.zeros((1024, 1024), dtype=bool)
    mask[100 + i : 400, 64 + 500 * lesion : 300 + 500 * lesion] = True
    return mask


def make_siim(folder: Path, *, layout: str = "dicom", blanks: str = " ") -> Path:
    """Write SIIM-ACR: every second image has a lesion, every sixth two, in rows of their own.

    Args:
        folder: is made.
        layout: "dicom" (a), "kaggle" (b: no labelled images), "png" (c, by id) or "numbered" (c, with the name tables).
        blanks: what stands before ``EncodedPixels`` and ``-1``.
    """
    rows: list[list[str]] = []
    numbered: dict[str, list[list[object]]] = {"train": [], "test": []}
    for i in range(SIIM_IMAGES):
        part = "test" if i % 7 == 6 else "train"
        lesions = (2 if i % 6 == 0 else 1) if i % 2 == 0 else 0
        rows += [[siim_id(i), _siim_code(i, lesion)] for lesion in range(lesions)] or [
            [siim_id(i), f"{blanks}-1"]
        ]
        name = f"{i}_{part}_{int(lesions > 0)}_.png"
        numbered[part].append([name, siim_id(i), int(lesions > 0)])
        if layout == "dicom":
            stem = f"1.2.276.0.7230010.3.1.{{}}.8323329.{i}.1517875{160 + i}.1"
            place = folder / f"dicom-images-{part}" / stem.format(2) / stem.format(3)
            write_dicom(place / f"{siim_id(i)}.dcm", pixels(3000 + i), inverted=i % 20 == 3)
        elif layout != "kaggle":
            write_image(
                folder / "png_images" / (name if layout == "numbered" else f"{siim_id(i)}.png"), 3000 + i
            )
    if layout == "dicom":  # of the real tree 37 images have no row
        write_dicom(folder / "dicom-images-train/1.2/1.3/1.2.276.0.7230010.3.1.4.1.dcm", pixels(1))
    if layout == "kaggle":
        write_dicom(folder / "stage_2_images" / "ID_0011fe81e.dcm", pixels(1))
    if layout == "numbered":
        for part, names in numbered.items():
            write_csv(folder / f"stage_1_{part}_images.csv", ("new_filename", "ImageId", "has_pneumo"), names)
            shutil.copytree(folder / "png_images", folder / "png_masks", dirs_exist_ok=True)
    write_csv(folder / "stage_2_train.csv", ("ImageId", f"{blanks}EncodedPixels"), rows)
    return folder


# --- NIH ----------------------------------------------------------------------------------------------------


def make_nih(folder: Path, *, flat: bool = False, stray: bool = True) -> Path:
    """Write the table of 150 images, a test list of 105, and the images of its first fifth and a few more."""
    rows, test = [], []
    for i in range(150):
        name = nih_name(i)
        findings = "No Finding" if i % 15 == 14 else NIH[i % 15] + ("|Mass" if i % 15 == 1 else "")
        rows.append(
            [name, findings, i % 2, 1 + i // 2, 58, "M", ("PA", "AP")[i % 2], 2682, 2749, 0.143, 0.143]
            + [""] * stray
        )
        if i % 10 >= 3:
            test.append(name)
    for i, name in enumerate(test[: NIH_SLICE + 3]):
        inside = "images" if flat else f"images_{1 + i % 12:03d}/images"
        write_image(folder / inside / name, 5000 + i, mode="RGBA" if i == 4 else "L")
    header = (
        *("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender"),
        *(
            "View Position",
            "OriginalImage[Width",
            "Height]",
            "OriginalImagePixelSpacing[x",
            "y]",
            *[""] * stray,
        ),
    )
    write_csv(folder / "Data_Entry_2017_v2020.csv", header, rows)
    (folder / "test_list.txt").write_text(
        "\n".join(test[::-1]) + "\n", encoding="utf-8"
    )  # its order must not matter
    return folder


# --- Open-i -------------------------------------------------------------------------------------------------

XML = """\
<?xml version="1.0" encoding="utf-8"?>
<eCitation>
 <meta type="rr"/>
 <uId id="CXR{uid}"/>
 <MedlineCitation Owner="Indiana University">
  <Article><Abstract>
   <AbstractText Label="COMPARISON">None.</AbstractText>
   <AbstractText Label="INDICATION">Positive TB test, XXXX</AbstractText>
   <AbstractText Label="FINDINGS">{findings}</AbstractText>
   <AbstractText Label="IMPRESSION">{impression}</AbstractText>
  </Abstract></Article>
 </MedlineCitation>
 <parentImage id="{images[0]}"><caption>Xray Chest PA and Lateral</caption></parentImage>
 <parentImage id="{images[1]}"><caption>Xray Chest PA and Lateral</caption></parentImage>
</eCitation>
"""


def make_openi(folder: Path, *, form: str = "xml", views: bool = True, reports: int = 40) -> Path:
    """Write Open-i: every report has a frontal and a lateral image; report 2 is empty, report 3 has no findings.

    Args:
        folder: is made.
        form: "xml", "kaggle" or "json".
        views: write ``indiana_projections.csv`` (the Kaggle form has it always).
        reports: number of reports.
    """
    table, projections, items = [], [], []
    for uid in range(1, reports + 1):
        findings = "" if uid in (2, 3) else f"The lungs of case {uid} are clear & wide."
        impression = "" if uid == 2 else f"No acute disease in case {uid}."
        table.append(
            [
                uid,
                "normal",
                "normal",
                "Xray Chest PA and Lateral",
                "Positive TB test",
                "None.",
                findings,
                impression,
            ]
        )
        names = [f"{uid}_IM-{uid:04d}-{end}.dcm.png" for end in ("4001", "3001")]
        projections += [[uid, names[0], "Frontal"], [uid, names[1], "Lateral"]]
        if form == "xml":
            path = folder / "ecgen-radiology" / f"{uid}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            safe = findings.replace("&", "&amp;")
            ids = [f"CXR{uid}_{'1_' * (uid == 1)}IM-{uid:04d}-{end}" for end in ("4001", "3001")]
            text = XML.format(uid=uid, findings=safe, impression=impression, images=ids)
            path.write_text(text, encoding="utf-8")
            images = [f"{name}.png" for name in ids]
        elif form == "json":
            images = [f"images/CXR{uid}_IM-{uid:04d}/{k}.png" for k in range(2)]
            inner = [image.removeprefix("images/") for image in images]
            items.append(
                {"id": f"CXR{uid}_IM-{uid:04d}", "report": findings, "image_path": inner, "split": "train"}
            )
        else:
            images = [f"images/images_normalized/{name}" for name in names]
        for k, image in enumerate(images):
            write_image(folder / image, 9000 + 2 * uid + k, height=70)
    if form == "kaggle":
        header = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")
        write_csv(folder / "indiana_reports.csv", header, table)
    if form == "json":
        split = {"train": items[:-4], "val": items[-4:-2], "test": items[-2:]}
        (folder / "annotation.json").write_text(json.dumps(split), encoding="utf-8")
    elif views or form == "kaggle":
        write_csv(folder / "indiana_projections.csv", ("uid", "filename", "projection"), projections)
    return folder


# --- histopathology -----------------------------------------------------------------------------------------


def make_pmc_oa(folder: Path, *, form: str = "pmc_oa") -> Path:
    """Write 80 figures of 40 articles; three quarters of the captions hold a keyword.

    Args:
        folder: is made.
        form: "pmc_oa", "pmc_oa_beta", or "older" for the three files of the first release.
    """
    stains = (
        "H&E stain of the colon, x40",
        "Biopsy of a lung nodule",
        "Haematoxylin stain of skin",
        "A bar chart",
    )
    lines = []
    for i in range(80):
        article, image = f"PMC{100 + i // 2}", f"PMC{100 + i // 2}_Fig{i % 2}_{i}.jpg"
        write_image(folder / "images" / image, 11000 + i, height=66 + i % 5, mode="RGB")
        caption = f"{stains[i % 4]},\n figure {i}." if i != 8 else "Biopsy."
        lines.append(
            json.dumps({"image": image, "caption": caption, "pmcid": article, "url_name": "x"}) + "\n"
        )
    lines.append(lines[0])
    if form == "older":
        for name, part in (("train", lines[:60]), ("valid", lines[60:70]), ("test", lines[70:])):
            (folder / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
    else:
        (folder / f"{form}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def make_lc25000(folder: Path, *, groups: bool = True, per_class: int = 10) -> Path:
    """Write the five class folders, two copies of every source tile."""
    rows = []
    for k, (name, stem) in enumerate(LC25000.items()):
        organ = name.partition("_")[0]
        for i in range(1, per_class + 1):
            place = folder / "lung_colon_image_set" / f"{organ}_image_sets" / name
            write_image(place / f"{stem}{i}.jpeg", 13000 + 100 * k + i, height=72, width=72, mode="RGB")
            rows.append([f"{stem}{i}", f"{stem}{i}.jpeg", name, organ, i // 2, 100 * k + i // 2])
    if groups:
        header = ("stem", "filename", "label", "tissue", "local_cluster_label", "group_id")
        write_csv(folder / "lc25000_image_groups.csv", header, rows)
    return folder


def make_mhist(folder: Path, *, count: int = 30) -> Path:
    """Write tiles of both kinds, a third of them in the test part."""
    rows = []
    for i in range(count):
        name = f"MHIST_{chr(97 + i // 26)}{chr(97 + i % 26)}a.png"
        write_image(folder / "images" / name, 15000 + i, mode="RGB")
        rows.append([name, ("HP", "SSA")[i % 2], i % 8, "test" if i % 3 == 0 else "train"])
    votes = "Number of Annotators who Selected SSA (Out of 7)"
    write_csv(folder / "annotations.csv", ("Image Name", "Majority Vote Label", votes, "Partition"), rows)
    return folder
