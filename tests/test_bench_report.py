"""What ``fastssl bench`` shows: tables on a terminal and in Markdown, and the plot."""

from __future__ import annotations

import copy
import io
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fastssl.benchmarks import cases, fits, nt_xent, plot, report, runner

PASSES = tuple(cases.PASSES)
ENVIRONMENT = {
    "versions": {"fastssl": "1.2.3", "torch": "9.8", "triton": None},
    "commit": {"commit": "0123456789abcdef", "dirty": False},
    "machine": {"cpu": "A Processor", "memory_bytes": 16e9, "cuda": None},
    "threads": {"torch": 2},
    "extension": {"isa": "avx2"},
}


def row(provider, seconds=None, *, n=512, dtype="float32", allocator="default", **fields):
    """As Row.to_json gives it; the forward pass takes a quarter of the seconds, quartiles are 10 % apart."""
    times = {}
    if seconds is not None:
        for which, part in (("forward", 0.25), ("backward", 0.75), ("both", 1.0)):
            median = seconds * part
            times[which] = {"median_s": median, "q25_s": median * 0.95, "q75_s": median * 1.05}
    return {
        "sizes": {"N": n, "D": 128, "temperature": 0.1},
        "dtype": dtype,
        "device": "cpu",
        "provider": provider,
        "allocator": allocator,
        "status": "ok",
        "reason": "",
        "note": "",
        "times": times,
        "share_of_limit": dict.fromkeys(times, 0.5),
        "peak_extra_bytes": 3_000_000 if times else None,
        "bytes_needed": 0.0,
        **fields,
    }


def refused(provider, n, gigabytes, **fields):
    reason = f"needs about {gigabytes} GB, 8.0 GB are available"
    return row(provider, n=n, status="unavailable", reason=reason, bytes_needed=gigabytes * 1e9, **fields)


def document(rows):
    return report.document(
        nt_xent.FAMILY,
        rows,
        {"product_flops_per_s": {"float32": {"torch.mm": 1e11}}, "copy_bytes_per_s": 1e10},
        command="fastssl bench nt_xent --json x.json",
        options={},
        environment=ENVIRONMENT,
        disturbance={},
    )


CLIFF = [
    row("fastssl", 0.002, n=512),
    row("fastssl", 0.008, n=1024, peak_extra_bytes=6_000_000),
    row("fastssl", 0.032, n=2048, peak_extra_bytes=12_000_000),
    row("eager", 0.004, n=512, peak_extra_bytes=50_000_000),
    row("eager", 0.016, n=1024, peak_extra_bytes=200_000_000),
    refused("eager", 2048, 21.5),
    row("compiled", 0.003, n=512),
    row("compiled", n=1024, status="failed", reason="out of memory"),
    refused("lightly", 512, 99.0),
]


def printed(rows, *, width=100, passes=PASSES, subject="fastssl"):
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(report.table(rows, subject, passes))
    return out.getvalue()


def cells(text, provider):
    """The words of a provider's line in the grid, without its name."""
    return next(line.split()[1:] for line in text.splitlines() if line.startswith(provider + " "))


# --- Tables ---------------------------------------------------------------------------------------------------------


def test_a_table_compares_each_provider_with_the_subject():
    text = printed([row("fastssl", 0.004), row("eager", 0.01, peak_extra_bytes=25_000_000)])
    assert text.startswith("N=512 D=128 temperature=0.1 float32 cpu, glibc's default allocator\n")
    # no share of the limit for the backward pass alone
    assert cells(text, "fastssl") == ["*1.00", "±5%", "50%", "*3.00", "±5%", "*4.00", "±5%", "50%", "*3.00"]
    assert cells(text, "eager") == (
        ["2.50", "±5%", "2.50x", "50%", "7.50", "±5%", "2.50x", "10.0", "±5%", "2.50x", "50%", "25.0"]
    )
    assert "FASTER" not in text


def test_a_faster_baseline_is_seen_at_a_glance():
    rows = [row("fastssl", 0.004), row("compiled", 0.002), row("eager", 0.01)]
    text = printed(rows, passes=("both",))
    assert cells(text, "compiled")[:3] == ["*2.00", "±5%", "0.50x"] and cells(text, "fastssl")[0] == "4.00"
    assert re.search(r"^FASTER +compiled +forward \+ backward 2\.00x *$", text, re.MULTILINE)
    (sentence,) = report.beaten(rows, "fastssl", ["both"])
    assert sentence.endswith("allocator, forward + backward: compiled is 2.00x as fast as fastssl")


def test_the_subjects_own_forms_and_a_backward_pass_alone_beat_nobody():
    rows = [row("fastssl", 0.004), row("fastssl-inplace", 0.002), row("chunked", 0.005)]
    rows[2]["times"]["backward"]["median_s"] = 1e-4  # its gradient is ready after the forward pass
    assert report.beaten(rows, "fastssl", PASSES) == []
    assert "FASTER" not in printed(rows)


def test_each_allocator_is_judged_apart():
    rows = [row("fastssl", 0.004), row("eager", 0.008)]
    rows += [row("fastssl", 0.004, allocator="pooled"), row("eager", 0.002, allocator="pooled")]
    assert [len(group) for group in report.group(rows).values()] == [2, 2]
    (sentence,) = report.beaten(rows, "fastssl", ["both"])
    assert "allocator that keeps pages" in sentence and "eager is 2.00x" in sentence


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_nothing_is_cut_off_at_any_width(width):
    reason = "O(N^3) time and memory, not tried above N = 128 (27 s and 17 GB at N = 512)"
    rows = [
        row("fastssl", 0.0123),
        row("compiled-autocast", 0.0456),
        row("pytorch-metric-learning", 27.4, peak_extra_bytes=17_000_000_000),
        row("lightly", status="unavailable", reason=reason),
        row("wrong", status="wrong", reason="loss is off by 0.001, allowed is 2e-06"),
        row("chunked", 0.02, note="1024 rows a block"),
    ]
    text = printed(rows, width=width)
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for number in ("*12.3", "45.6", "3.71x", "2228x", "17000"):
        assert number in text
    said = " ".join(text.split())
    for part in (f"UNAVAILABLE lightly {reason}", "WRONG wrong loss is off by 0.001", "NOTE chunked 1024 rows a block"):
        assert part in said


def test_a_table_without_any_time_says_why():
    text = printed([row("fastssl", status="failed", reason="RuntimeError: no kernel"), refused("eager", 512, 21.5)])
    assert "RuntimeError: no kernel" in text and "needs about 21.5 GB, 8.0 GB are available" in text


def test_a_reason_that_looks_like_markup_is_printed_as_it_is():
    text = printed([row("fastssl", status="failed", reason="KeyError: [bold] is not [/a] tag")])
    assert "KeyError: [bold] is not [/a] tag" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(27.44, "27.4 s"), (1.0, "1.00 s"), (0.173, "173 ms"), (6.68e-4, "668 µs"), (5e-8, "0.0500 µs")],
)  # fmt: skip
def test_times_have_three_digits_and_a_unit(seconds, text):
    assert report.time_text(seconds) == text


def test_sizes_have_a_unit():
    assert [report.bytes_text(count) for count in (21.5e9, 25.7e6, 0)] == ["21.5 GB", "25.7 MB", "0 MB"]


# --- Documents and Markdown -----------------------------------------------------------------------------------------


def test_markdown_has_a_line_per_size_and_a_column_per_provider():
    rows = [row("fastssl", 0.004), row("eager", 0.01), row("fastssl", 0.016, n=1024), row("eager", 0.012, n=1024)]
    rows += [row("lightly", status="unavailable", reason="not installed")]
    text = report.markdown(document(rows), passes=["both"])
    assert "| forward + backward, glibc's default allocator | fastssl | eager |\n|---|---|---|\n" in text
    assert "| float32, N = 512 | **4.00 ms** | 10.0 ms (2.50x) |" in text
    assert "| float32, N = 1024 | 16.0 ms | **12.0 ms** (0.75x) |" in text
    assert "| extra memory, glibc's default allocator | fastssl | eager |" in text
    assert text.endswith("lightly: not installed\n")
    assert "fastssl 1.2.3 (0123456789), torch 9.8; A Processor, 2 threads, avx2. `fastssl bench nt_xent" in text


def test_markdown_of_a_command(tmp_path, capsys):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document([row("fastssl", 0.004), row("eager", 0.01), row("lightly", 0.02)])))
    command = [str(path), "--pass", "both", "--show", "time", "share"]
    assert report.main([*command, "--providers", "lightly", "fastssl"]) == 0
    printed = capsys.readouterr().out
    assert "| lightly | fastssl |" in printed and "| 50% | 50% |" in printed
    assert "eager" not in printed and "memory" not in printed
    assert report.main([*command, "--providers", "nobody"]) == 2
    assert "providers must be among fastssl, eager, lightly, got nobody" in capsys.readouterr().err


def test_runs_on_the_same_machine_share_their_tables():
    small, large = document([row("fastssl", 0.004)]), document([row("fastssl", 0.016, n=1024)])
    elsewhere = copy.deepcopy(large)
    elsewhere["environment"]["machine"]["cpu"] = "Another Processor"
    large["command"] = "fastssl bench nt_xent --n 1024"
    both, alone = report.merged([small, elsewhere, large])
    text = report.markdown(both, passes=["both"], shown=["source", "time"])
    assert "| float32, N = 512 | **4.00 ms** |\n| float32, N = 1024 | **16.0 ms** |" in text
    assert "`fastssl bench nt_xent --json x.json`, `fastssl bench nt_xent --n 1024`" in text
    assert alone["rows"] == elsewhere["rows"] and alone["environment"] == elsewhere["environment"]


def broken(**changes):
    whole = document([row("fastssl", 0.004)])
    return {**whole, **changes}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no json", "got no JSON"),
        ("[]", "a result must be an object with 'rows'"),
        (json.dumps(broken(schema=1)), "a result must be of schema 2, got 1; measure again"),
        (json.dumps({k: v for k, v in broken().items() if k != "subject"}), "a result must have 'subject'"),
        (json.dumps(broken(rows=[{"provider": "eager"}])), "row 0 must have 'sizes', 'dtype'"),
    ],
)
def test_what_is_no_result_is_refused_by_name(text, says, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(says)) as refusal:
        report.load(path)
    assert str(refusal.value).startswith(str(path))
    with pytest.raises(ValueError, match="No such file"):
        report.load(tmp_path / "missing.json")


def test_the_rows_of_the_runner_have_what_a_document_needs():
    case = cases.Case({"N": 4, "D": 2, "temperature": 0.1}, torch.float32, "cpu")
    report.check(document([runner.Row(case, "fastssl", allocator="default").to_json()]))


def test_a_page_gets_its_tables_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("result.json").write_text(json.dumps(document([row("fastssl", 0.004), row("eager", 0.01)])))
    start, end = f"<!-- {report.PROGRAM} result.json --pass both --show time -->\n", "<!-- end -->"
    Path("page.md").write_text(f"Before\n\n{start}| old |\n{end}\n\nBetween\n\n{start}{end}\nAfter\n")
    assert report.main(["--update", "page.md"]) == 0
    page = Path("page.md").read_text()
    assert page.count("| float32, N = 512 | **4.00 ms** | 10.0 ms (2.50x) |") == 2 and "old" not in page
    assert page.startswith("Before\n") and "Between" in page and page.endswith(f"{end}\nAfter\n")
    assert report.update(page) == page


def test_fits_of_several_seeds_become_a_table(tmp_path, capsys):
    result = {"method": "simclr", "backbone": "resnet10t", "epochs": 6, "steps": 168, "training_seconds": 90.0}
    for seed in (0, 1, 2):
        accuracy = {"pixels": {"knn": 0.2, "linear": 0.3}, "trained": {"knn": 0.8 + seed / 100, "linear": 0.9}}
        (tmp_path / str(seed)).mkdir()
        written = json.dumps({**result, "seed": seed, "accuracy": accuracy})
        (tmp_path / str(seed) / "results.json").write_text(written)
    runs = [str(tmp_path / str(seed)) for seed in (0, 1, 2)]
    file = tmp_path / "fits.json"
    assert fits.main([*runs, "--command", "fastssl fit simclr", "--json", str(file)]) == 0
    assert report.main([str(file)]) == 0
    text = capsys.readouterr().out
    assert "`fastssl fit simclr`, seeds 0, 1, 2: 6 epochs, 1.5, 1.5, 1.5 minutes of training." in text
    assert "| trained | **81.0** (80.0, 81.0, 82.0) | **90.0** (90.0, 90.0, 90.0) |" in text
    assert "| pixels | 20.0 (20.0, 20.0, 20.0) |" in text
    document = json.loads(file.read_text())
    for fit, untrained in zip(document["fits"], (0.7, 0.72, 0.8), strict=True):
        fit["accuracy"]["untrained"] = {"knn": untrained, "linear": 0.85}
    file.write_text(json.dumps(document))
    assert report.main([str(file), str(file)]) == 0
    text = capsys.readouterr().out
    line = "| `fastssl fit simclr` | resnet10t | 6 | 1.5 | 74.0 | **81.0** (80.0, 81.0, 82.0) | +2.0 | 90.0 |"
    assert text.count(line) == 2 and text.count("torch") == 1
    (tmp_path / "1" / "results.json").write_text(json.dumps({**result, "epochs": 7, "seed": 1}))
    for wrong, message in ((runs, "must be a run like"), ([str(tmp_path)], "must be the folder of a finished run")):
        with pytest.raises(SystemExit):
            fits.main([*wrong, "--command", "x"])
        assert message in capsys.readouterr().err


ROOT = Path(__file__).parent.parent
PAGES = [page for page in (ROOT / "README.md", *ROOT.glob("docs/*.md")) if report.PLACE.search(page.read_text())]


def test_a_document_is_written_with_its_samples_side_by_side():
    whole = {"rows": [{"samples_s": [1e-3, 2.5e-3], "note": "a [1, 2] b"}], "empty": [], "names": ["x", "y"]}
    text = report.text(whole)
    assert json.loads(text) == whole and "[0.001, 0.0025]" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_published_tables_are_what_their_commands_print(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = page.read_text()
    assert report.update(text) == text


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks/results/*_cpu_*.json")), ids=lambda path: path.name)
def test_committed_results_can_be_drawn(path):
    loaded = report.load(path)
    assert any(axes.get_lines() for axes in plot.figure([loaded]).axes)


# --- The plot -------------------------------------------------------------------------------------------------------


def drawn(axes, kind):
    """Provider -> points of the lines of a kind: "line", "cliff", "estimate"."""
    found = {}
    for line in axes.get_lines():
        if line.get_gid() == kind:
            found.setdefault(line.get_label(), []).extend(map(tuple, line.get_xydata()))
    return found


def test_a_png_is_written(tmp_path):
    path = tmp_path / "plots" / "nt_xent.png"
    plot.draw([document(CLIFF)], path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n") and path.stat().st_size > 30_000


def test_lines_show_the_medians_of_forward_and_backward_and_the_memory():
    time, memory = plot.figure([document(CLIFF)]).axes
    assert drawn(time, "line") == {
        "fastssl": [(512, 0.002), (1024, 0.008), (2048, 0.032)],
        "eager": [(512, 0.004), (1024, 0.016)],
        "compiled": [(512, 0.003)],
    }
    assert drawn(memory, "line")["eager"] == [(512, 5e7), (1024, 2e8)]
    assert time.get_xscale() == time.get_yscale() == memory.get_xscale() == memory.get_yscale() == "log"


def test_the_memory_cliff_is_marked():
    time, memory = plot.figure([document(CLIFF)]).axes
    # The last time that could be measured; lightly never ran, so there is no line to end.
    assert drawn(time, "cliff") == {"eager": [(1024, 0.016)], "compiled": [(512, 0.003)]}
    # Where the estimate is known, it; else the last that could be measured.
    assert drawn(memory, "cliff") == {"eager": [(2048, 21.5e9)], "compiled": [(512, 3e6)]}
    assert drawn(memory, "estimate") == {"eager": [(1024, 2e8), (2048, 21.5e9)]}
    assert [line.get_ydata()[0] for line in memory.get_lines() if line.get_gid() == "capacity"] == [16e9]
    without = [r for r in CLIFF if r["status"] == "ok"]
    for axes in plot.figure([document(without)]).axes:
        assert not drawn(axes, "cliff") and not drawn(axes, "estimate") and not drawn(axes, "capacity")


def test_an_estimate_of_what_was_measured_or_failed_otherwise_is_no_cliff():
    rows = copy.deepcopy(CLIFF[:5])
    rows[4]["bytes_needed"] = 9e9
    rows.append(row("eager", n=2048, status="failed", reason="RuntimeError: no", bytes_needed=9e9))
    for axes in plot.figure([document(rows)]).axes:
        assert not drawn(axes, "cliff") and not drawn(axes, "estimate")


def test_a_column_of_panels_per_dtype_and_allocator_with_the_same_limits():
    rows = [
        row("fastssl", 0.002 * n / 512, n=n, dtype=dtype, allocator=allocator)
        for dtype in ("float32", "bfloat16")
        for allocator in ("default", "pooled")
        for n in (512, 1024)
    ]
    figure = plot.figure([document(rows)])
    titles = [axes.get_title(loc="left") for axes in figure.axes[::2]]
    assert titles == [
        f"{dtype}, {report.ALLOCATORS[allocator]}"
        for dtype in ("float32", "bfloat16")
        for allocator in ("default", "pooled")
    ]
    assert len({axes.get_ylim() for axes in figure.axes[::2]}) == 1
    said = "\n".join(text.get_text() for text in figure.texts)
    for part in (
        "D = 128",
        "A Processor, 2 threads",
        "fastssl 1.2.3 (0123456789)",
        "torch 9.8",
        "fastssl bench nt_xent",
    ):
        assert part in said


def test_memory_that_was_not_measured_is_said_so():
    rows = [row(name, 0.002, n=n, peak_extra_bytes=None) for name in ("fastssl", "eager") for n in (512, 1024)]
    time, memory = plot.figure([document(rows)]).axes
    assert set(drawn(time, "line")) == {"fastssl", "eager"} and not drawn(memory, "line")
    assert [text.get_text() for text in memory.texts] == ["not measured"]


def test_an_unknown_provider_has_a_look_and_keeps_it():
    assert plot.style("a newcomer") == plot.style("a newcomer")


def test_the_axis_is_the_size_that_varies():
    rows = [row("fastssl", 0.002 * d, sizes={"N": 512, "D": d, "temperature": 0.1}) for d in (32, 64)]
    time, _ = plot.figure([document(rows)]).axes
    assert drawn(time, "line") == {"fastssl": [(32, 0.064), (64, 0.128)]}
    assert "N = 512; " in "".join(text.get_text() for text in time.figure.texts)


def test_labels_keep_their_distance_and_their_order():
    heights = [0.1, 0.11, 0.12, 0.5, 0.9, 0.9]
    placed = plot._apart(heights, 0.05)
    gaps = [above - below for below, above in itertools.pairwise(placed)]
    assert min(gaps) == pytest.approx(0.05) and placed[3] == 0.5
    assert sum(placed[:3]) / 3 == pytest.approx(0.11)  # around where the lines end


@pytest.mark.parametrize(
    ("documents", "says"),
    [
        ([], "results must be of one family, got none"),
        ([document([row("fastssl", status="failed", reason="no")])], "must have a provider with times"),
        ([broken(schema=1)], "must be of schema 2"),
        ([broken(), broken(family="other")], "of one family, got nt_xent, other"),
    ],
)
def test_what_cannot_be_drawn_is_refused(documents, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        plot.draw(documents, tmp_path / "plot.png")
