"""Bones, airway, stomach bubble, hernia and support devices: what is added to the soft chest."""

from __future__ import annotations

import numpy as np

from benchmark.phantom.chest.domains import Domain
from benchmark.phantom.chest.findings import Chest
from benchmark.phantom.chest.studies import INDEX, RIGHT
from benchmark.phantom.shapes import Array, bump, column, normal, ramp, segment, uniform


def add_bubbles(chest: Chest, density: Array) -> None:
    """Subtract the stomach bubble under the left dome (half of the studies) and draw hiatal hernias."""
    anatomy, count = chest.anatomy, len(chest.studies)
    center_u, below = uniform(chest.rng, count, 0.25, 0.42), uniform(chest.rng, count, 0.12, 0.20)
    there = column(chest.rng.random(count) < 0.5)
    center_v = anatomy.habitus.domes[:, 1:] + below
    bubble = bump(((anatomy.u - center_u) / 0.20) ** 2 + ((anatomy.v - center_v) / 0.10) ** 2)
    density -= 0.34 * there * bubble * (1 - anatomy.above)
    rows = chest.studies.rows("hernia")
    if len(rows):
        v = anatomy.v[rows]
        distance = np.sqrt((anatomy.central[rows] - 0.05) ** 2 + (v - 0.30) ** 2)
        radius = 0.12 + 0.08 * chest.severity("hernia", rows)
        air = ramp(radius - 0.035 - distance, 16.0) * ramp(0.30 - v, 16.0)  # level above the fluid
        density[rows] += 0.10 * ramp(radius - distance, 16.0) - 0.30 * air


def add_bones(chest: Chest, density: Array, domain: Domain) -> None:
    """Add ribs (one periodic phase field, stepped where broken), spine, clavicles; subtract the trachea."""
    anatomy, rng, count = chest.anatomy, chest.rng, len(chest.studies)
    u, v, out = anatomy.u, anatomy.v, anatomy.out
    visibility = np.clip(normal(rng, count, *domain.bones), 0.3, 1.6)
    spacing, offset = uniform(rng, count, 0.155, 0.180), uniform(rng, count, 0, 1)
    phase = (v + 0.84 * (out - 0.30) ** 2 - 0.30 * (out - 0.3)) / spacing + offset
    gain = _break_ribs(chest, phase)
    fraction = phase - np.floor(phase) - 0.5
    limits = ramp(1.12 - anatomy.radius2, 5.0) * ramp(out - _middle_edge(chest), 10.0) * ramp(0.62 - v, 6.0)
    ribs = bump(fraction * fraction / np.float32(0.075)) * limits
    for rows, factor in gain:
        ribs[rows] *= factor
    spine = ramp(0.060 - np.abs(u), 14.0) * (0.6 + 0.4 * np.cos(np.float32(38) * v))
    inner = (column(0.08), normal(rng, count, -0.60, 0.02))
    clavicle = segment(out, v, inner, (column(0.72), normal(rng, count, -0.74, 0.03)), 0.055)
    density += visibility * (0.085 * ribs + 0.07 * spine + 0.16 * clavicle)
    density -= 0.16 * ramp(0.045 - np.abs(anatomy.central + 0.01), 18.0) * ramp(-0.30 - v, 8.0)


def _middle_edge(chest: Chest) -> Array:
    return chest.anatomy.habitus.mediastinum + 0.06 * np.maximum(chest.anatomy.v, 0)


def _break_ribs(chest: Chest, phase: Array) -> list[tuple[Array, Array]]:
    """Step the phase of broken ribs; return (rows, factor): ribs bright at the break, with a dark gap."""
    rows = chest.studies.rows("fracture")
    if not len(rows):
        return []
    s = chest.severity("fracture", rows)
    sign = np.where(chest.studies.side[rows, INDEX["fracture"]] == RIGHT, -1, 1).astype(np.float32)[:, None]
    out, v = chest.anatomy.u[rows] * sign, chest.anatomy.v[rows]
    center_u, center_v = 0.56 + chest.between(rows, -0.06, 0.06), chest.between(rows, -0.32, 0.12)
    across = out - center_u - 0.15 * (v - center_v)  # the line of fracture runs obliquely
    near = bump((across / 0.24) ** 2 + ((v - center_v) / (0.20 + 0.12 * s)) ** 2)
    broken = near > 0.15
    phase[rows] += 0.5 * (broken & (across > 0))
    gap = broken & (np.abs(across) < 0.032)
    return [(rows, (1 + (2.5 + 2.5 * s) * near) * (1 - gap))]


def add_devices(chest: Chest, density: Array) -> None:
    """Add tube and central line, pacemaker, or monitoring leads, one kind per study that has devices."""
    rows = chest.studies.rows("support_devices")
    kind = chest.rng.integers(0, 3, len(rows))
    for number, draw in enumerate((_tube_and_line, _pacemaker, _leads)):
        here = rows[kind == number]
        if len(here):
            density[here] += 0.30 * draw(chest, here)


def _tube_and_line(chest: Chest, rows: Array) -> Array:
    u, v, shift = chest.anatomy.u[rows], chest.anatomy.v[rows], chest.anatomy.habitus.shift[rows]
    tube = segment(u, v, (shift, column(-1.0)), (shift, chest.between(rows, -0.40, -0.30)), 0.032)
    side = np.where(chest.rng.random((len(rows), 1)) < 0.5, -1, 1).astype(np.float32)
    turn = (-0.08 * side, column(-0.45))
    subclavian = segment(u, v, (-0.55 * side, column(-0.80)), turn, 0.026)
    caval = segment(u, v, turn, (-0.10 * side, chest.between(rows, -0.15, 0.05)), 0.026)
    return np.maximum(np.maximum(tube, subclavian), caval)


def _pacemaker(chest: Chest, rows: Array) -> Array:
    u, v = chest.anatomy.u[rows], chest.anatomy.v[rows]
    case = 1.2 * ramp(0.10 - np.maximum(np.abs(u - 0.55), np.abs(v + 0.56)), 16.0)
    turn = (column(0.06), column(-0.40))
    lead = segment(u, v, (column(0.47), column(-0.50)), turn, 0.028)
    tip = (chest.between(rows, 0.08, 0.22), chest.between(rows, 0.28, 0.42))
    return np.maximum(np.maximum(case, lead), segment(u, v, turn, tip, 0.028))


def _leads(chest: Chest, rows: Array) -> Array:
    u, v = chest.anatomy.u[rows], chest.anatomy.v[rows]
    top = (chest.between(rows, -0.6, 0.6), column(-0.9))
    down = segment(u, v, top, (chest.between(rows, -0.5, 0.5), chest.between(rows, 0.1, 0.6)), 0.024)
    start = (chest.between(rows, -0.8, -0.5), chest.between(rows, -0.4, 0.2))
    end = (chest.between(rows, 0.3, 0.8), chest.between(rows, -0.2, 0.5))
    return np.maximum(down, segment(u, v, start, end, 0.024))
