"""The small tables that are printed last."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from gpu.job import Row, is_of, read_rows

MOST_CHARACTERS = 11_000  # of the end of the output, more may not come back
COUNTERS = {
    "us": "gpu__time_duration.sum",
    "DRAM %": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "SM %": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "occupancy %": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
    "eligible": "smsp__warps_eligible.avg.per_cycle_active",
}


def summary(output: Path, environment: Row, records: Sequence[Row]) -> str:
    """Tables of all that was measured at this commit on this device, and what became of each stage."""
    runs = {record["run"] for record in records if "run" in record}
    parts = []
    names = [record["stage"] for record in records]
    for stages, title, table in TABLES:
        rows = [
            row
            for stage in stages
            if stage in names
            for row in read_rows(output / f"{stage}.jsonl")
            if row["run"] in runs or is_of(row, environment)
        ]
        try:
            lines = table(rows) if rows else []
        except Exception:  # a table less, but the others
            lines = traceback.format_exc().splitlines()[-3:]
        if lines:
            parts.append("\n".join([f"== {title}", *lines]))
    lines = list(map(_stage_line, records))
    where = (
        f"{environment['device']}, torch {environment['torch']}, triton {environment['triton']}, "
        f"commit {environment['commit'] or 'unknown'}"
    )
    parts.append("\n".join(["== stages", *lines, where]))
    return "\n\n".join(parts)[-MOST_CHARACTERS:]


def _stage_line(record: Row) -> str:
    seconds = f"{record.get('seconds', 0):4.0f} s"
    return f"{record['stage']:12} {record['status']:8} {seconds}  {record['reason'][:150]}"


def _smoke(rows: Sequence[Row]) -> list[str]:
    worst: dict[str, Row] = {}
    for row in rows:
        if "ratio" in row and not row["ratio"] <= worst.get(row["unit"], row)["ratio"]:
            worst[row["unit"]] = row
        elif "ratio" in row:
            worst.setdefault(row["unit"], row)
    failed = {row["unit"]: row["reason"] for row in rows if row.get("outcome") == "failed"}
    lines = [
        f"{unit:26} {row['ratio']:7.3f}  {row['tensor']:22} {'' if row['ok'] else 'FAILS'}"
        for unit, row in worst.items()
    ]
    return lines + [f"{u:26} FAILS {r[:120]}" for u, r in failed.items() if u not in worst]


def _times(rows: Sequence[Row]) -> list[str]:
    """A line for each case and gradient: us of every provider, and its speed-up over the eager reference."""
    by_case: dict[str, list[str]] = {}
    copies = set()
    for result in (row["result"] for row in rows if "result" in row):
        name = f"{result['case']} {result['gradient']}"
        label = result["provider"].replace(" + ", "+").replace("compile", "c").replace("graph", "g")
        text = f"{label} {1e3 * result['both_ms_p50']:.1f}"
        if result["speedup"] and result["provider"] != "reference":
            text += f" ({result['speedup']:.2f}x)"
        if result["copy_gb_s"] and label == "triton+g" and result["gradient"] == "no-grad":
            text += f" {result['forward_gb_s'] / result['copy_gb_s']:.0%} of copy"
            copies.add(f"{result['copy_gb_s']:.0f}")
        by_case.setdefault(name, []).append(text)
        if result["gradient_error"] and result["gradient_error"] > 1:
            by_case[name][-1] += f" GRADIENT OFF {result['gradient_error']:.2g}"
    lines = [f"{name}: {', '.join(texts)}" for name, texts in by_case.items()]
    return lines + ([f"copy GB/s: {', '.join(sorted(copies))}"] if copies else []) + _left_out(rows)


def _left_out(rows: Sequence[Row]) -> list[str]:
    found = {
        f"{s['case'] or ''} {s['provider']}: {s['reason'][:100]}": None
        for s in (row["skipped"] for row in rows if "skipped" in row)
    }
    return list(found)[:12]


def _flat(rows: Sequence[Row]) -> list[str]:
    found = {
        (r["case"], r["provider"], r["iterations"]): r
        for r in (row["result"] for row in rows if "result" in row)
    }
    lines = []
    for (case, provider, many), row in found.items():
        few = found.get((case, provider, 1))
        if few is not None and many > 1:
            memory = row["peak_bytes"] / few["peak_bytes"]
            backward = row["backward_ms_p50"] / few["backward_ms_p50"]
            lines.append(f"{case:16} {provider:16} memory {memory:.4f} backward {backward:.3f}")
    return lines


def _kernels(rows: Sequence[Row]) -> list[str]:
    """The kernels of a training step that take most of its time."""
    by_unit: dict[str, list[Row]] = {}
    for row in rows:
        if "kernel" in row and row["unit"].endswith("implicit"):
            by_unit.setdefault(row["unit"], []).append(row)
    lines = []
    for unit, found in by_unit.items():
        total = sum(row["us_per_step"] for row in found)
        launches = sum(row["launches"] for row in found)
        lines.append(f"{unit}: {total:.1f} us in {launches:.0f} kernels")
        for row in sorted(found, key=lambda row: -row["us_per_step"])[:7]:
            registers = row["resources"].get("registers per thread", "-")
            lines.append(
                f"   {row['us_per_step']:8.1f} us {row['launches']:5.1f} x {row['us_p50']:7.2f}  "
                f"{registers} regs  {row['kernel'][:48]}"
            )
    return lines


def _tests(rows: Sequence[Row]) -> list[str]:
    outcomes = [row["test"] for row in rows if "test" in row]
    lines = [f"{outcomes.count(o)} {o}" for o in ("passed", "failed", "skipped") if o in outcomes]
    failed = [row for row in rows if row.get("test") == "failed"]
    for row in failed[:15]:
        message = [line for line in row["message"].splitlines() if line.startswith("E ")] or [""]
        lines.append(f"FAILED {row['unit'].partition('::')[2]} {message[0][:110]}")
    return lines


def _counters(rows: Sequence[Row]) -> list[str]:
    lines = [f"shape kernel: {', '.join(COUNTERS)}"]
    for row in (row for row in rows if "counters" in row):
        found = {key.partition(" ")[0]: value for key, value in row["counters"].items()}
        values = " ".join(str(found.get(name, "-")) for name in COUNTERS.values())
        lines.append(f"{row['unit']} {row['kernel'].removesuffix('_kernel')[:28]}: {values}")
    return lines


def _slate(rows: Sequence[Row]) -> list[str]:
    lines = []
    for result in (row["result"] for row in rows if "result" in row):
        peak = f"{result['peak_bytes'] / 2**20:.0f} MiB" if result["peak_bytes"] else "-"
        lines.append(
            f"{result['case']:12} {result['provider']:10} {result['gradient']:9} "
            f"{result['step_ms_p50']:8.2f} ms {result['images_per_s']:7.0f}/s {peak} {result['speedup']:.2f}x"
        )
    return lines + _left_out(rows)


def _tune(rows: Sequence[Row]) -> list[str]:
    by_launch: dict[str, list[Row]] = {}
    lines = []
    for row in rows:
        if row.get("kernel") and row["us_p50"]:
            unit = f"{row['unit']} {row['kernel']} {row['what']}"
            by_launch.setdefault(unit, []).append(row)
        elif "update" in row:
            by_launch.setdefault(row["unit"], []).append(
                {**row, "options": {"plan": row["update"]}}
            )
    for unit, found in by_launch.items():
        best = sorted(found, key=lambda row: row["us_p50"])
        shown = "; ".join(f"{r['us_p50']:.2f} {_short(r['options'])}" for r in best[:3])
        lines.append(f"{unit[:60]:60} {shown}")
    return lines


def _attention(rows: Sequence[Row]) -> list[str]:
    by_unit: dict[str, list[str]] = {}
    for row in rows:
        if "attention" in row:
            text = row.get("error") or (
                f"{row['forward_us']:.0f} / {row['step_us']:.0f} us, {row['peak_bytes'] / 2**20:.0f} MiB"
            )
            by_unit.setdefault(row["unit"], []).append(f"{row['attention']} {text}")
        elif "difference" in row:
            by_unit[row["unit"]].append(f"difference {row['difference']:.4f}")
    return [f"{unit}: {'; '.join(texts)}" for unit, texts in by_unit.items()]


def _short(options: Row) -> str:
    return " ".join(str(value).replace(" ", "") for value in options.values())


def _outcomes(rows: Sequence[Row]) -> list[str]:
    return [
        f"{row['unit']}: {row['outcome']} {row.get('reason', '')}"[:160]
        for row in rows
        if row.get("outcome") in ("failed", "skipped", "left")
    ][:10]


Table = Callable[[Sequence[Row]], list[str]]
# What matters most comes last, where a long output is cut last.
TABLES: tuple[tuple[tuple[str, ...], str, Table], ...] = (
    (("counters",), "counters of launches with cold caches", _counters),
    (("tune", "attention"), "fastest variants of each kernel, us", _tune),
    (
        ("kernels", "kernels_again"),
        "kernels of a training step, us in a step, launches x median",
        _kernels,
    ),
    (("slate", "slate_compiled"), "SLATE's training step", _slate),
    (("attention",), "self-attention: forward / with backward, at its peak", _attention),
    (
        ("memcheck",),
        "sanitizer",
        lambda rows: [f"{r['unit']}: {r['summary']}" for r in rows if "summary" in r],
    ),
    (("flat",), "T = 127 over T = 1", _flat),
    (("baselines",), "compiled baselines", _times),
    (("times",), "us, medians of forward and backward (g: graph, c: compiled)", _times),
    (("times_again",), "us, medians of forward and backward (g: graph, c: compiled)", _times),
    (("unit_tests", "unit_tests_again"), "GPU tests", _tests),
    (("smoke", "smoke_again"), "worst error over what rounding explains (at most 1)", _smoke),
    (("tune", "attention", "compile", "train"), "other stages", _outcomes),
)
