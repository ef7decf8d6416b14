"""Which GPU of the catalogue a driver means: the names that `torch.cuda.get_device_name` returns.

The first word sequence that occurs in the driver's name decides; the longer ones stand first. Names as drivers print
them in public logs ("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA H100 PCIe").
"""

_PATTERNS = (
    ("gh200 120gb", "gh200-96gb"),
    ("gh200 480gb", "gh200-96gb"),
    ("gh200 144g", "gh200-144gb"),
    ("gb300", "gb300"),
    ("gb200", "gb200"),
    ("b300", "b300"),
    ("b200", "b200"),
    ("h200 nvl", ""),
    ("h200", "h200"),
    ("h100 nvl", "h100-nvl-94gb"),
    ("h100 pcie", "h100-pcie-80gb"),
    ("h100 80gb hbm3", "h100-sxm-80gb"),
    ("h100 sxm5 96gb", "h100-sxm-96gb"),
    ("h800 pcie", ""),
    ("h800", "h800-sxm-80gb"),
    ("a100-sxm4-80gb", "a100-sxm-80gb"),
    ("a100-sxm4-40gb", "a100-sxm-40gb"),
    ("a100 80gb pcie", "a100-pcie-80gb"),
    ("a800-sxm4-80gb", "a800-sxm-80gb"),
    ("v100-sxm2-32gb", "v100-sxm-32gb"),
    ("v100-sxm3-32gb", "v100-sxm-32gb"),
    ("v100-sxm2-16gb", "v100-sxm-16gb"),
    ("l40s", "l40s"),
    ("rtx pro 6000", "rtx-pro-6000"),
    ("mi250x", "mi250x"),
    ("mi300x", "mi300x"),
    ("mi325x", "mi325x"),
    ("mi355x", "mi355x"),
)


def catalogue_name(reported: str) -> str | None:
    """Return the catalogue's name of the GPU that a driver reports; None for one that it does not hold."""
    told = " ".join(reported.lower().split())
    return next((name or None for words, name in _PATTERNS if words in told), None)
