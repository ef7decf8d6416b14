"""Files as nvidia-smi, NCCL, Slurm and kubectl write them, of clusters made up here."""

import json

NODE_KEY = "NODE"


def topology_matrix(
    gpus: int = 8, cards: int = 10, near: int = 8, *, link: str = "NV18", underlined: bool = True
) -> str:
    """Return what `nvidia-smi topo -m` prints: `near` of the cards stand behind a PCIe switch with a GPU."""
    labels = [*(f"GPU{index}" for index in range(gpus)), *(f"NIC{index}" for index in range(cards))]

    def cell(row: str, column: str) -> str:
        if row == column:
            return " X "
        if row[0] == column[0] == "G":
            return link
        gpu, card = (row, column) if row[0] == "G" else (column, row)
        if gpu[0] == "G" and int(card[3:]) < near:
            return "PXB" if int(gpu[3:]) == int(card[3:]) % gpus else "SYS"
        return "NODE" if row[0] != column[0] else "SYS"

    first = "\t".join(labels) + "\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID"
    lines = ["\t\x1b[4m" + first + "\x1b[0m" if underlined else "\t" + first]
    for row in labels:
        tail = "\t0-55,112-167\t0\t\tN/A" if row[0] == "G" else ""
        lines.append(row + "\t" + "\t".join(cell(row, column) for column in labels) + tail)
    legend = ["", "Legend:", "", "  X    = Self", "  NV#  = Connection traversing a bonded set of # NVLinks", ""]
    return "\n".join([*lines, *legend, "NIC Legend:", "", *(f"  NIC{i}: mlx5_{i}" for i in range(cards))]) + "\n"


def nccl_topology(
    gpus: int = 8, *, hosts: int = 1, device: str = "0x2330", speed: int = 400000, switched: bool = True
) -> str:
    """Return NCCL's dump: a card beside each GPU, and a socket on every processor."""
    lines = ['<system version="1">']
    for host in range(hosts):
        lines.append(f'  <cpu host_hash="0x{host + 1:x}" numaid="0" arch="x86_64" vendor="GenuineIntel" modelid="143">')
        for gpu in range(gpus):
            bus = f"{host:04x}:{gpu + 16:02x}:00.0"
            lines += [
                f'    <pci busid="{host:04x}:{gpu + 64:02x}:00.0" class="0x060400" link_speed="32.0 GT/s PCIe">',
                f'      <pci busid="{bus}" class="0x030200" vendor="0x10de" device="{device}" link_width="16">',
                f'        <gpu dev="{gpu}" sm="90" rank="{gpu}" gdr="1">',
            ]
            others = [f"{host:04x}:{other + 16:02x}:00.0" for other in range(gpus) if other != gpu]
            if switched:
                lines.append('          <nvlink target="fffffff:ff:ff.0" count="18" tclass="0x068000"/>')
            else:
                lines += [f'          <nvlink target="{other}" count="4" tclass="0x030200"/>' for other in others]
            net = f'<net name="mlx5_{gpu}" dev="{gpu}" speed="{speed}" port="1" guid="0x{gpu}" gdr="1"/>'
            lines += ["        </gpu>", "      </pci>", f"      <nic>{net}</nic>", "    </pci>"]
        lines += ['    <nic><net name="eth0" dev="8" speed="10000" port="0" guid="0x0" gdr="0"/></nic>', "  </cpu>"]
    return "\n".join([*lines, "</system>"]) + "\n"


SLURM_TREE = """# two units
SwitchName=leaf1 Nodes=node[001-016]
SwitchName=leaf2 Nodes=node[017-032]
switchname=leaf3 nodes=node[033-048] LinkSpeed=400
SwitchName=leaf4 Nodes=node[049-060]
SwitchName=spine[1] Switches=leaf[1-2] # a comment
SwitchName=spine2 Switches=leaf3,leaf4
SwitchName=core Switches=spine[1],spine2
""".replace("spine[1]", "spine1")

SLURM_BLOCKS = """BlockName=b1 Nodes=rack1-[01-18]
BlockName=b2 Nodes=rack2-[01-18]
BlockName=b3 Nodes=rack3-[01-18]
BlockName=b4 Nodes=rack4-[01-18]
BlockSizes=18,36
"""

SLURM_CONF = """ClusterName=c
NodeName=DEFAULT CPUs=128 RealMemory=2000000
NodeName=gpu[001-032] Gres=gpu:h100:8(S:0-1) State=UNKNOWN
NodeName=gpu[033-064] \\
    Gres=gpu:h100:8 RealMemory=1900000
NodeName=login1 RealMemory=100000
PartitionName=batch Nodes=ALL Default=YES
"""

SLURM_YAML = """---
- topology: topo-flat
  flat: true
- topology: topo-switch
  cluster_default: true
  tree:
    switches:
      - switch: sw_root
        children: s[1-2]
      - switch: s1
        nodes: node[01-04]
      - switch: s2
        nodes: node[05-08]
"""

SLURM_YAML_BLOCKS = """- topology: topo-block
  block:
    block_sizes: [2, 4]
    blocks:
      - block: b1
        nodes: node[01-02]
      - block: b2
        nodes: node[03-04]
      - block: b3
        nodes: node[05-06]
      - block: b4
        nodes: node[07-08]
"""


def kubernetes_nodes(
    nodes: int = 8, per_leaf: int = 4, *, product: str = "NVIDIA-H100-80GB-HBM3", labels: dict[str, str] | None = None
) -> str:
    """Return `kubectl get nodes -o json`: nodes behind leaves, and one without GPUs."""
    items = [{"kind": "Node", "metadata": {"name": "control", "labels": {}}, "status": {"capacity": {"memory": "1Ki"}}}]
    for index in range(nodes):
        named = {
            "nvidia.com/gpu.product": product,
            "nvidia.com/gpu.count": "8",
            "network.topology.nvidia.com/leaf": f"leaf-{index // per_leaf}",
            "topology.kubernetes.io/zone": "one",
            **(labels or {}),
        }
        capacity = {"memory": f"{2113481940 + index}Ki", "nvidia.com/gpu": "8"}
        metadata = {"name": f"node-{index}", "labels": named}
        items.append({"kind": "Node", "metadata": metadata, "status": {"capacity": capacity}})
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1)
