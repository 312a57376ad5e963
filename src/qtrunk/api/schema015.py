"""The data tree of ETSI GS QKD 015 V2.1.1, module etsi-qkd-sdn-node, revision 2022-01-30.

A test compiles the YANG module beside this file (`yang/`) and compares every node, type and key with this table. What
`is_writable` says is ours: a link's generation can be stopped, an application's priority and bandwidth can be set;
everything else follows from the topology and from what the node sees.
"""

from qtrunk.api.yangtree import Container, Leaf, LeafList, ListOf

MODULE = "etsi-qkd-sdn-node"
TYPES = "etsi-qkd-node-types"
NAMESPACE = "urn:etsi:qkd:yang:etsi-qkd-node"
TYPES_NAMESPACE = "urn:etsi:qkd:yang:etsi-qkd-node-types"
REVISION = "2022-01-30"
ROOT = "qkd_node"

APP_QOS = Container(
    {
        "max_bandwidth": Leaf("uint32", is_writable=True),
        "min_bandwidth": Leaf("uint32", is_writable=True),
        "jitter": Leaf("uint32"),
        "ttl": Leaf("uint32"),
        "clients_shared_path_enable": Leaf("boolean"),
        "clients_shared_keys_required": Leaf("boolean"),
    }
)
APP = ListOf(
    "app_id",
    {
        "app_id": Leaf("uuid"),
        "app_status": Leaf("identityref", config=False),
        "app_type": Leaf("identityref"),
        "server_app_id": Leaf("uri"),
        "client_app_id": LeafList("uri"),
        "app_priority": Leaf("uint32", is_writable=True),
        "creation_time": Leaf("date-and-time", config=False),
        "expiration_time": Leaf("date-and-time"),
        "app_statistics": Container(
            {
                "statistics": ListOf(
                    "end_time",
                    {
                        "end_time": Leaf("date-and-time", config=False),
                        "start_time": Leaf("date-and-time", config=False),
                        "consumed_bits": Leaf("uint32", config=False),
                    },
                    config=False,
                )
            }
        ),
        "app_qos": APP_QOS,
        "backing_qkdl_id": LeafList("uuid"),
        "local_qkdn_id": Leaf("uuid"),
        "remote_qkdn_id": Leaf("uuid"),
    },
)
INTERFACE = ListOf(
    "qkdi_id",
    {
        "qkdi_id": Leaf("uint32"),
        "qkdi_model": Leaf("string"),
        "qkdi_type": Leaf("identityref"),
        "qkdi_att_point": Container({"device": Leaf("string"), "port": Leaf("uint32")}),
        "qkdi_capabilities": Container(
            {
                "role_support": Leaf("identityref"),
                "wavelength_range": Leaf("wavelength-range-type"),
                "max_absorption": Leaf("decimal64"),
            }
        ),
        "qkdi_status": Leaf("identityref", config=False),
    },
)
PERFORMANCE = Container(
    {
        "expected_consumption": Leaf("uint32", config=False),
        "skr": Leaf("uint32", config=False),
        "eskr": Leaf("uint32", config=False),
        "phys_perf": ListOf(
            "perf_type",
            {"perf_type": Leaf("identityref", config=False), "value": Leaf("decimal64", config=False)},
            config=False,
        ),
    }
)
LINK = ListOf(
    "qkdl_id",
    {
        "qkdl_id": Leaf("uuid"),
        "qkdl_status": Leaf("identityref"),
        "qkdl_enable": Leaf("boolean", is_writable=True),
        "qkdl_local": Container({"qkdn_id": Leaf("uuid"), "qkdi_id": Leaf("uint32")}),
        "qkdl_remote": Container({"qkdn_id": Leaf("uuid"), "qkdi_id": Leaf("uint32")}),
        "qkdl_type": Leaf("identityref"),
        "qkdl_applications": LeafList("uuid"),
        "virt_prev_hop": Leaf("uuid"),
        "virt_next_hop": LeafList("uuid"),
        "virt_bandwidth": Leaf("uint32"),
        "phys_channel_att": Leaf("decimal64"),
        "phys_wavelength": Leaf("wavelength"),
        "phys_qkd_role": Leaf("identityref"),
        "qkdl_performance": PERFORMANCE,
    },
)
NODE = Container(
    {
        "qkdn_id": Leaf("uuid"),
        "qkdn_status": Leaf("identityref", config=False),
        "qkdn_version": Leaf("string"),
        "qkdn_location_id": Leaf("string"),
        "qkdn_capabilities": Container(
            {
                "link_stats_support": Leaf("boolean"),
                "application_stats_support": Leaf("boolean"),
                "key_relay_mode_enable": Leaf("boolean"),
            }
        ),
        "qkd_applications": Container({"qkd_app": APP}),
        "qkd_interfaces": Container({"qkd_interface": INTERFACE}),
        "qkd_links": Container({"qkd_link": LINK}),
    }
)
"""Of `qkd_node`."""


def identity(name: str) -> str:
    """An identity of the types module, as JSON has it (RFC 7951 clause 6.8)."""
    return f"{TYPES}:{name}"
