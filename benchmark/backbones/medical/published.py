"""All records by name."""

from __future__ import annotations

from benchmark.backbones.medical.broad import PLIP, PMC_CLIP, QUILTNET
from benchmark.backbones.medical.radiology import (
    BIOVIL,
    BIOVIL_TEMPORAL,
    CONVIRT,
    GLORIA,
    KAD,
    MGCA_R50,
    MGCA_VIT,
    PRIOR,
)
from benchmark.backbones.medical.records import Record

RECORDS: dict[str, Record] = {
    record.name: record
    for record in (
        *(CONVIRT, GLORIA, MGCA_R50, MGCA_VIT, BIOVIL, BIOVIL_TEMPORAL, PRIOR, KAD),
        *(PMC_CLIP, PLIP, QUILTNET),
    )
}
