"""The generated backbone, and keys that flow over networks: nothing is made from nothing, what is cut is avoided."""

import json
from dataclasses import replace

import distributed
import networkx as nx
import numpy as np
import pytest
from click.testing import CliRunner

from qtrunk.base.errors import RequestRefused
from qtrunk.cli.main import cli
from qtrunk.plan.scale import demands as wanted
from qtrunk.plan.scale import recipe
from qtrunk.plan.scale.keyflow import Conditions, KeyFlow, busiest_total
from qtrunk.plan.scale.runs import Task, run, run_all
from qtrunk.relay.graph import graph_of
from qtrunk.relay.route import route
from qtrunk.topology import Demand, Node, Sae, Topology, ring

CALM = Conditions(cuts_per_1000_km_year=0.0, outages_per_site_year=0.0, warm_up_s=600.0)


@pytest.mark.parametrize(("sites", "seed"), [(60, 1), (61, 2), (200, 3), (777, 4)])
def test_a_backbone_has_as_many_sites_as_asked_for_and_no_ring_is_parted_by_one_cut(sites, seed):
    made = recipe.backbone(sites, seed)
    network = made.topology
    assert len(network.nodes) == len({node.id for node in network.nodes}) == sites
    assert len({link.id for link in network.links}) == len(network.links)
    graph = nx.Graph((link.alice, link.bob) for link in network.links)
    assert len(graph) == sites
    assert nx.is_connected(graph)
    # Trunks may hang a remote group of cities on one trunk; rings never do.
    bridges = {frozenset(ends) for ends in nx.bridges(graph)}
    assert all(link.id in made.trunk_links for link in network.links if frozenset((link.alice, link.bob)) in bridges)
    assert all(link.length_km <= recipe.SPAN_KM for link in network.links if link.id in made.trunk_links)


def test_the_same_seed_makes_the_same_network_and_another_one_another():
    assert recipe.backbone(100, 5).topology == recipe.backbone(100, 5).topology
    assert recipe.backbone(100, 5).topology != recipe.backbone(100, 6).topology
    with pytest.raises(RequestRefused, match="nodes: 10"):
        recipe.backbone(10)


def small_ring(sites=6):
    nodes = [Node(id=f"n{place}") for place in range(sites)]
    made = ring("ring", nodes, [(50.0, 11.0)] * sites)
    return replace(
        made,
        saes=(Sae(id="a", node="n0"), Sae(id="b", node="n2")),
        demands=(Demand(between=("a", "b"), rate_bps=4000.0),),
    )


def flow_over(network, total_bps, conditions=CALM):
    graph = graph_of(network)
    asked, _ = wanted.of_topology(network, graph.index)
    return KeyFlow(graph, np.full(len(graph.heads), 10_000.0), asked, total_bps, conditions, seed=1)


def test_what_the_links_can_carry_is_supplied_and_what_they_cannot_is_not_made_up():
    light = flow_over(small_ring(), 2_000.0).run(6 * 3600.0)
    assert light.served_bits.sum() == light.asked_bits.sum() > 0
    # Two hops each way at 10 kbit/s a direction: no more than 20 kbit/s in both directions, and what the pools held.
    most = 20_000.0 * 6 * 3600 + 2 * 10_000.0 * (CALM.pool_s + CALM.warm_up_s)
    heavy = flow_over(small_ring(), 50_000.0).run(6 * 3600.0)
    assert 0.9 * 20_000.0 * 6 * 3600 < heavy.served_bits.sum() <= most
    assert heavy.asked_bits.sum() > 1.9 * heavy.served_bits.sum()


def test_each_hop_of_a_route_gives_what_is_supplied():
    outcome = flow_over(small_ring(), 2_000.0).run(6 * 3600.0)
    assert np.count_nonzero(outcome.use) == 4, "two hops in either direction"
    # What lies ahead at the end was relayed, and not supplied yet.
    assert 2 * outcome.served_bits.sum() == pytest.approx(outcome.use.sum(), rel=0.02)


def test_a_cut_sends_demands_around_and_mending_brings_them_back():
    network = small_ring()
    flow = flow_over(network, 2_000.0)
    graph = graph_of(network)
    flow._close([np.int64(arc) for arc in graph.arcs[network.links[0].id]], 1e9)
    cut = flow._closed.copy()
    flow._reroute(cut, np.zeros_like(cut))
    assert sorted(len(row) for row in flow._routes) == [4, 4]
    assert flow.outcome.rerouted == 2
    assert all(not cut[row].any() for row in flow._routes)
    flow._closed[:] = False
    flow._reroute(np.zeros_like(cut), cut)
    assert sorted(len(row) for row in flow._routes) == [2, 2]


def test_routes_are_those_that_a_node_would_take():
    made = recipe.backbone(150, 7)
    graph = graph_of(made.topology)
    asked = wanted.generated(made, 100, graph.index, 7)
    flow = KeyFlow(graph, np.ones(len(graph.heads)), asked, 1.0, CALM, 7)
    for demand, row in enumerate(flow._routes):
        taken = [*(graph.nodes[graph.tails[arc]] for arc in row), graph.nodes[graph.heads[row[-1]]]]
        source, target = graph.nodes[asked.sources[demand]], graph.nodes[asked.targets[demand]]
        # Of routes that cost the same either may be taken.
        same = route(made.topology, source, target)
        assert (taken[0], taken[-1], len(taken)) == (source, target, len(same))


def test_a_network_without_protection_is_short_while_a_link_is_cut():
    line = Topology(
        name="line",
        nodes=small_ring().nodes[:3],
        links=small_ring().links[:2],
        saes=small_ring().saes,
        demands=small_ring().demands,
    )
    bad = Conditions(cuts_per_1000_km_year=20_000.0, mending_s=3600.0, outages_per_site_year=0.0)
    outcome = flow_over(line, 2_000.0, bad).run(2 * 86400.0)
    protected = flow_over(small_ring(), 2_000.0, bad).run(2 * 86400.0)
    assert outcome.cuts > 0
    assert outcome.short_steps.sum() > 2 * protected.short_steps.sum()


def test_the_load_is_that_of_the_busiest_link_at_its_busiest_hour():
    made = recipe.backbone(120, 2)
    graph = graph_of(made.topology)
    asked = wanted.generated(made, 240, graph.index, 2)
    rates = np.full(len(graph.heads), 1e5)
    total_bps = busiest_total(graph, rates, asked, 0.7)
    flow = KeyFlow(graph, rates, asked, total_bps, CALM, 1)
    busiest = max((asked.rates(total_bps, 3600.0 * hour) @ flow.over / rates).max() for hour in range(24))
    assert busiest == pytest.approx(0.7)


def test_the_same_seed_gives_the_same_run_and_a_file_without_demands_is_refused():
    task = Task(topology=small_ring().to_dict(), load=None, days=0.2, seed=3)
    (again,) = run_all([task])
    figures = run(task)
    for name in ("seconds", "times_real_time", "longest_reroute_s"):
        del again[name], figures[name]
    assert again == figures
    assert figures["served_ratio"] == 1.0
    with pytest.raises(RequestRefused, match="no demands"):
        run(Task(topology=replace(small_ring(), demands=()).to_dict(), load=None))


def test_the_command_line_simulates_a_file_and_refuses_two_networks_at_once():
    done = CliRunner().invoke(cli, ["simulate", "nanjing-shanghai", "--days", "0.05", "--format", "json"])
    assert done.exit_code == 0, done.output
    (figures,) = json.loads(done.stdout)
    assert figures["nodes"] == 8
    assert figures["demands"] > 0
    both = CliRunner().invoke(cli, ["simulate", "nanjing-shanghai", "--nodes", "100"])
    assert both.exit_code == 1
    assert "TOPOLOGY" in both.output


# Dask starts threads and sockets of its own, and warns of what it finds on the machine.
@pytest.mark.filterwarnings("ignore")
def test_a_dask_cluster_gives_the_same_figures():
    tasks = [Task(topology=small_ring().to_dict(), load=None, days=0.1, seed=seed) for seed in (1, 2)]
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp"
    ) as cluster:
        found = sorted(run_all(tasks, cluster.scheduler_address), key=lambda figures: figures["seed"])
    assert [figures["served_bits"] for figures in found] == [run(task)["served_bits"] for task in tasks]
    with pytest.raises(RequestRefused, match="no scheduler"):
        list(run_all(tasks, "tcp://127.0.0.1:1"))
