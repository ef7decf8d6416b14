"""The page of a serving plan: what is started, what becomes of requests, speed against throughput, the commands."""

from collections.abc import Iterator
from xml.etree import ElementTree as ET

from cli.render import counted, milliseconds
from cli.render_serve import FRONT, header, serve_sections, speeds, verdict
from cli.report_page.frame import Tile, framed, tiles_element
from cli.report_page.markup import block_elements, element, folded, headed, scrollable
from cli.report_page.speed_plot import speed_elements
from planner.serving_plans.plan import ServePlan
from planner.serving_search.launch import serve_files


def serving_page(plan: ServePlan) -> str:
    """Return the page of a serving plan."""
    title = f"{plan.model.name} served on {' and '.join(cluster.name for cluster in plan.clusters)}"
    lead = (*block_elements((*header(plan), *verdict(plan))), *_tiles(plan))
    return framed(title, lead=lead, sections=_sections(plan))


def _tiles(plan: ServePlan) -> Iterator[ET.Element]:
    """Yield the figures that one looks for first; none without a plan."""
    if not plan.deployments:
        return
    per_gpu, per_user = speeds(plan)
    served = plan.deployments[0].served[0]
    found: list[Tile] = [
        ("requests", f"{plan.requests_per_second:,.2f}/s", f"on {counted(plan.num_gpus, 'GPU')}"),
        ("throughput", f"{per_gpu:,.1f} tokens/s/GPU", "output, over all GPUs there are"),
        ("speed", f"{per_user:,.1f} tokens/s/user", f"TPOT {milliseconds(served.tpot.mean)} in the mean"),
        ("first token", milliseconds(served.ttft.mean), f"99 % within {milliseconds(served.ttft.p99)}"),
    ]
    if plan.price_per_hour is not None:
        found.append(("price", f"{plan.price_per_hour:,.2f} an hour", "of the GPUs that are used"))
    yield tiles_element(found)


def _sections(plan: ServePlan) -> Iterator[ET.Element]:
    """Yield the sections in reading order."""
    planned = speeds(plan) if plan.deployments else None
    for number, (title, blocks) in enumerate(serve_sections(plan, verbose=True)):
        pictures = speed_elements(plan.pareto, planned=planned) if title == FRONT else ()
        yield headed(title, *pictures, *block_elements(blocks), anchor=f"part-{number}")
    if plan.deployments:
        files = serve_files(plan)
        yield headed(
            "Files",
            *(folded(name, scrollable(name, element("pre", text))) for name, text in files.items()),
            anchor="files",
        )
