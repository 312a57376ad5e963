"""The data tree of ETSI GS QKD 015 and its notifications, validated by yangson against the (patched) YANG."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
from yangson import DataModel
from yangson.enumerations import ContentType
from yangson.exceptions import YangsonException
from yangson.schemanode import ContainerNode, LeafListNode, LeafNode, ListNode, NotificationNode

import qtrunk.api
from qtrunk.api import restconfdocs, schema015
from qtrunk.api.etsi015 import AlarmView, AppQos, AppView, LinkView, NodeView, links_to, tree, uuid_of
from qtrunk.api.notifications015 import Watch, notification
from qtrunk.api.yangtree import Container, Leaf, LeafList, ListOf, config_of, pruned, state_of

YANG = Path(qtrunk.api.__file__).parent / "yang"
SHIPPED = {path.stem for path in YANG.rglob("*.yang")}


def library() -> str:
    import json

    found = restconfdocs.library("localhost")["ietf-yang-library:modules-state"]
    modules = [{k: v for k, v in one.items() if k != "schema"} for one in found["module"] if one["name"] in SHIPPED]
    return json.dumps({"ietf-yang-library:modules-state": {**found, "module": modules}})


@pytest.fixture(scope="module")
def model() -> DataModel:
    return DataModel(library(), (str(YANG / "patched"), str(YANG / "upstream"), str(YANG / "ietf")))


def link(name, remote, **more):
    return LinkView(
        **{
            "id": uuid_of("net", "link", name),
            "is_physical": True,
            "status": "ACTIVE",
            "remote": remote,
            "name": name,
            "end": "alice",
            "loss_db": 11.5,
            "qber": 0.0123,
            "model": "Faraday-Michelson, 1.25 GHz",
            "is_module_up": True,
            "secret_bps": 12_345.6,
            "effective_bps": 11_000.0,
            "expected_bps": 100.0,
            **more,
        }
    )


def view(**more) -> NodeView:
    here = link("a-b", "b")
    away = LinkView(
        id=uuid_of("net", "virt", "a c"), is_physical=False, status="ACTIVE", remote="c", next_hop="b", secret_bps=9e9
    )
    app = AppView(
        id=uuid_of("net", "app", "bank vault"),
        initiator="bank",
        target="vault",
        remote_node="c",
        is_on=True,
        qos=AppQos(max_bandwidth=1000, min_bandwidth=10, ttl_s=60, priority=3),
        links=links_to([here, away], "c"),
        created_unix_s=1.8e9,
        periods=((1.8e9, 1.8e9 + 60, 10**10),),
    )
    made = NodeView(
        network="net",
        node="a",
        version="0.1.0",
        location="Beijing",
        status="OPERATING",
        links=(here, away),
        apps=(app,),
    )
    return replace(made, **more)


def validated(model, value):
    instance = model.from_raw({"etsi-qkd-sdn-node:qkd_node": value})
    instance.validate(ctype=ContentType.all)
    return value


def test_the_table_is_the_compiled_module(model):
    def compare(mine, theirs, where):
        kinds = {Leaf: LeafNode, LeafList: LeafListNode, Container: ContainerNode, ListOf: ListNode}
        assert isinstance(theirs, kinds[type(mine)]), where
        assert mine.config == theirs.config, where
        if isinstance(mine, Leaf | LeafList):
            base = re.sub(r"Type$", "", type(theirs.type).__name__).lower()
            names = {"identityref": "identityref", "uint32": "uint32", "boolean": "boolean", "decimal64": "decimal64"}
            assert names.get(mine.type, "string") == base, (where, base)
            return
        assert set(mine.children) == {child.name for child in theirs.data_children()}, where
        if isinstance(mine, ListOf):
            assert [(mine.key, None)] == [(name, None) for name, _ in theirs.keys], where
            assert restconfdocs.KEYS[where.rpartition("/")[2]] == mine.key
        for name, child in mine.children.items():
            found = theirs.get_data_child(name, "etsi-qkd-sdn-node")
            compare(child, found, f"{where}/{name}")

    compare(schema015.NODE, model.get_data_node("/etsi-qkd-sdn-node:qkd_node"), "")


def test_a_whole_node_is_valid_and_its_halves_are_the_whole(model):
    whole = validated(model, tree(view()))
    assert whole["qkd_links"]["qkd_link"][1]["qkdl_performance"]["skr"] == 2**32 - 1
    assert whole["qkd_applications"]["qkd_app"][0]["app_statistics"]["statistics"][0]["consumed_bits"] == 2**32 - 1
    config = validated(model, config_of(schema015.NODE, whole))
    state = state_of(schema015.NODE, whole)
    assert "qkdn_status" not in config
    assert "qkdn_status" in state
    assert "qkdl_enable" in config["qkd_links"]["qkd_link"][0]
    assert set(state["qkd_links"]["qkd_link"][0]) == {"qkdl_id", "qkdl_performance"}
    assert pruned(whole, 1) == {}
    assert pruned(whole, 2)["qkd_links"] == {}


def test_every_state_that_a_link_an_app_and_a_node_can_have_is_valid(model):
    for status in ("ACTIVE", "PASSIVE", "PENDING", "OFF"):
        for more in ({}, {"is_module_up": False}, {"is_enabled": False}, {"is_light": False, "loss_db": None}):
            changed = link("a-b", "b", status=status, end="bob", qber=None, **more)
            for node in ("NEW", "OPERATING", "DOWN"):
                validated(model, tree(view(links=(changed,), status=node)))
    quiet = replace(view().apps[0], is_on=False, qos=AppQos(), periods=(), links=())
    validated(model, tree(view(apps=(quiet,))))


def test_the_validator_sees_what_is_wrong(model):
    whole = tree(view())
    for spoil in (
        lambda value: value.pop("qkdn_id"),
        lambda value: value["qkd_links"]["qkd_link"][1].update(phys_channel_att="1.000"),
        lambda value: value["qkd_links"]["qkd_link"][0].update(virt_next_hop=[value["qkdn_id"]]),
        lambda value: value["qkd_links"]["qkd_link"][0].update(qkdl_status="ACTIVE"),
        lambda value: value["qkd_links"]["qkd_link"][0]["qkdl_performance"].update(skr=2**32),
    ):
        wrong = copy.deepcopy(whole)
        spoil(wrong)
        with pytest.raises(YangsonException):
            validated(model, wrong)


def test_the_published_module_refuses_what_it_means_to_allow():
    published = DataModel(library(), (str(YANG / "upstream"), str(YANG / "ietf")))
    with pytest.raises(YangsonException, match="phys_"):
        validated(published, tree(view()))


def test_the_patched_module_differs_in_four_lines():
    before, after = (
        (YANG / place / "etsi-qkd-sdn-node.yang").read_text().splitlines() for place in ("upstream", "patched")
    )
    differing = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(differing) == 4
    readme = (YANG / "README.md").read_text()
    for old, new in differing:
        assert f"-{old}" in readme
        assert f"+{new}" in readme
    assert "Redistribution and use" in (YANG / "LICENSE.etsi").read_text()


# ── notifications ──


def valid_notification(model, name, content):
    schema = model.schema.get_child(name, "etsi-qkd-sdn-node")
    assert isinstance(schema, NotificationNode), name
    check(schema, content, name)
    document = notification(name, content, 1.8e9)["ietf-restconf:notification"]
    assert document["eventTime"] == "2027-01-15T08:00:00.000Z"
    return document


def check(schema, value, where):
    """yangson validates data trees; a notification's content is checked node by node against the same schema."""
    if isinstance(schema, LeafNode | LeafListNode):
        for one in value if isinstance(schema, LeafListNode) else [value]:
            cooked = schema.type.from_raw(one)
            assert cooked is not None, (where, one)
            assert cooked in schema.type, (where, one)
        return
    entries = value if isinstance(schema, ListNode) else [value]
    for entry in entries:
        for name, child in entry.items():
            node = schema.get_data_child(name, "etsi-qkd-sdn-node")
            assert node is not None, (where, name)
            check(node, child, f"{where}/{name}")


ALARM = AlarmView(resource="a-b", type="LinkOff", severity="major", text="block 7 destroyed")
CHANGES = {
    "sdqkdn_application_new": (lambda v: replace(v, apps=()), lambda v: v),
    "sdqkdn_application_qos_update": (
        lambda v: v,
        lambda v: replace(v, apps=(replace(v.apps[0], qos=AppQos(max_bandwidth=5)),)),
    ),
    "sdqkdn_application_disconnected": (lambda v: v, lambda v: replace(v, apps=())),
    "sdqkdn_interface_new": (lambda v: replace(v, links=v.links[1:]), lambda v: v),
    "sdqkdn_interface_down": (lambda v: v, lambda v: replace(v, links=(replace(v.links[0], is_module_up=False),))),
    "sdqkdn_interface_out": (lambda v: v, lambda v: replace(v, links=v.links[1:])),
    "sdqkdn_link_down": (
        lambda v: v,
        lambda v: replace(v, links=(replace(v.links[0], status="OFF", why="cut"), v.links[1])),
    ),
    "sdqkdn_link_perf_update": (
        lambda v: v,
        lambda v: replace(v, links=(replace(v.links[0], secret_bps=6000.0), v.links[1])),
    ),
    "sdqkdn_link_overloaded": (
        lambda v: v,
        lambda v: replace(v, links=(replace(v.links[0], expected_bps=20_000.0), v.links[1])),
    ),
    "alarm": (lambda v: v, lambda v: replace(v, alarms=(ALARM,))),
    "event": (lambda v: replace(v, alarms=(ALARM,)), lambda v: v),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_notification_comes_when_it_should_and_is_valid(model, name):
    before, after = CHANGES[name]
    watch = Watch()
    assert watch.look(before(view())) == []
    found = watch.look(after(view()))
    # A link that is new has a rate that nobody was told yet.
    also = {"sdqkdn_link_perf_update"} if name == "sdqkdn_interface_new" else set()
    assert {name} <= {given for given, _ in found} <= {name} | also
    for given, content in found:
        valid_notification(model, given, content)
    assert watch.look(after(view())) == []


def test_all_notifications_of_the_module_are_known(model):
    names = {node.name for node in model.schema.children if isinstance(node, NotificationNode)}
    assert names == set(CHANGES)


def test_a_module_in_trouble_is_an_alarm_of_its_interface_and_a_pool_in_trouble_one_of_its_application(model):
    module = AlarmView(resource="a-b", type="ModuleLoss", severity="minor", text="no answer")
    pool = AlarmView(resource="pool bank to vault", type="QkdKeyFallback", severity="critical", text="ML-KEM alone")
    store = AlarmView(resource="store", type="StorageFull", severity="critical", text="full")
    watch = Watch()
    watch.look(view())
    found = watch.look(view(alarms=(module, pool, store)))
    assert [set(content) for _, content in found] == [{"link", "interface"}, {"application"}]
    for name, content in found:
        valid_notification(model, name, content)
    assert found[0][1]["interface"]["severity"].endswith("MINOR")
    assert found[1][1]["application"]["severity"].endswith("MAJOR")


def test_a_link_that_was_switched_off_is_an_event_and_not_a_fault():
    watch = Watch()
    watch.look(view())
    off = replace(view().links[0], is_enabled=False, status="PASSIVE")
    assert [name for name, _ in watch.look(view(links=(off, view().links[1])))] == ["event"]


def test_names_make_the_same_uuids_for_ever():
    assert uuid_of("net", "node", "a") == "6a95ba6c-8dfd-5e03-afd0-f3a721413a53"
    assert uuid_of("net", "node", "a") != uuid_of("net", "link", "a") != uuid_of("other", "link", "a")
