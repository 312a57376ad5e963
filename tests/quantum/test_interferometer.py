"""The interferometers: Jones matrices against light sent through every element, and what such systems are known for.

FALSE_ALARM is the chance that a right program fails one statistical comparison. The mean of many independent devices is
taken as normal; published means were rounded, which adds half a unit of their last digit.
"""

from dataclasses import replace
from math import cos, pi, radians, sin, sqrt

import numpy as np
import pytest
from scipy import stats

from qtrunk.base.errors import RequestRefused
from qtrunk.quantum.interferometer import (
    ALICE_PHASES_RAD,
    ANY_CHANNEL,
    BOB_PHASES_RAD,
    FARADAY,
    PLAIN,
    Arm,
    Michelson,
    bb84_table,
    central_slot,
    fringe,
    random_birefringence,
    slots,
    visibility,
)
from qtrunk.quantum.optics import Paths

FALSE_ALARM = 1e-7
SIGMAS = stats.norm.isf(FALSE_ALARM / 2)
IDEAL = Michelson()
PAULI = ANY_CHANNEL[1:]


def rotation(angle_rad):
    return np.array([[cos(angle_rad), -sin(angle_rad)], [sin(angle_rad), cos(angle_rad)]])


def device(births, errors_rad=(0, 0, 0, 0), mirror=FARADAY, **rest):
    arms = [
        Arm(birefringence=birth, mirror=mirror, mirror_error_rad=error)
        for birth, error in zip(births, errors_rad, strict=True)
    ]
    return Michelson(long=arms[0], short=arms[1], **rest), Michelson(long=arms[2], short=arms[3], **rest)


def fringes_of_devices(count, largest_error_rad, seed, mirror=FARADAY, sops=8):
    """Fringes at detector 0 of devices with arms and mirror errors of their own; shape (count, sops), a channel and an
    input of its own each."""
    dice = np.random.default_rng(seed)
    found = np.empty((count, sops), complex)
    for row in found:
        pair = device(random_birefringence(dice.random, 4), dice.uniform(-1, 1, 4) * largest_error_rad, mirror)
        inputs = random_birefringence(dice.random, sops)[:, :, 0]
        row[:] = fringe(*pair, random_birefringence(dice.random, sops), inputs)[:, 0]
    return found


def error_rate(table):
    wrong = table[..., 0, 0, 1] + table[..., 1, 0, 0] + table[..., 2, 1, 1] + table[..., 3, 1, 0]
    right = table[..., 0, 0, 0] + table[..., 1, 0, 1] + table[..., 2, 1, 0] + table[..., 3, 1, 1]
    return wrong / (wrong + right)


def assert_mean(samples, want, rounding):
    slack = SIGMAS * samples.std() / sqrt(len(samples))
    assert samples.mean() == pytest.approx(want, abs=slack + rounding)


# Against light that is sent through every element


def random_elements(dice, count=5):
    """Pieces of an arm as (out, back), in fixed axes: wave plates, alike both ways, and quartz, which turns it back."""
    elements = []
    for _ in range(count):
        axis = rotation(dice.uniform(0, pi))
        plate = axis @ np.diag(np.exp([0.5j * dice.uniform(0, 50), 0])) @ axis.T
        turn = dice.uniform(0, 2 * pi)
        elements += [(plate, plate), (rotation(turn), rotation(-turn))]
    return elements


def send(light, interferometer, long_elements, short_elements, phase_rad):
    """One trip into an interferometer and out: light is {slot: field} at the entrance, the result the same at the
    entrance and at the other port."""
    r, t = sqrt(interferometer.splitter_reflectivity), sqrt(1 - interferometer.splitter_reflectivity)
    first = phase_rad / (1 + interferometer.phase_tm_over_te)
    modulator = np.diag(np.exp([1j * first, 1j * (phase_rad - first)]))
    back, through = {}, {}
    for arm, elements, delay, into, other in (
        (interferometer.long, [*long_elements, (modulator, modulator)], 1, t, 1j * r),
        (interferometer.short, short_elements, 0, 1j * r, t),
    ):
        for slot, field in light.items():
            moved = into * field
            for out, _ in elements:
                moved = out @ moved
            moved = moved * 10 ** (-arm.loss_db / 20)
            if arm.mirror == FARADAY:
                moved = rotation(pi / 4 + arm.mirror_error_rad) @ moved
                moved = rotation(pi / 4 + arm.mirror_error_rad) @ moved
            moved = moved * 10 ** (-arm.loss_db / 20)
            for _, home in reversed(elements):
                moved = home @ moved
            back[slot + delay] = back.get(slot + delay, 0) + into * moved
            through[slot + delay] = through.get(slot + delay, 0) + other * moved
    return back, through


def energy(field):
    return float((np.abs(field) ** 2).sum())


@pytest.mark.parametrize("mirror", [FARADAY, PLAIN])
def test_slots_are_those_of_light_sent_through_every_element(mirror):
    dice = np.random.default_rng(3)
    for _ in range(25):
        elements = [random_elements(dice) for _ in range(4)]
        arms = []
        for pieces in elements:
            whole = np.linalg.multi_dot([out for out, _ in reversed(pieces)])
            error = dice.uniform(-0.3, 0.3) if mirror == FARADAY else 0.0
            arms.append(Arm(birefringence=whole, loss_db=dice.uniform(0, 3), mirror=mirror, mirror_error_rad=error))
        alice, bob = (
            Michelson(
                long=long,
                short=short,
                splitter_reflectivity=dice.uniform(0.2, 0.8),
                phase_tm_over_te=dice.uniform(0, 1),
                modulator_error_rad=dice.uniform(-0.2, 0.2),
            )
            for long, short in (arms[:2], arms[2:])
        )
        channel = random_birefringence(dice.random, 1)[0]
        sop = random_birefringence(dice.random, 1)[0, :, 0]
        alice_phases, bob_phases, offset = dice.uniform(0, 2 * pi, 3), dice.uniform(0, 2 * pi, 2), dice.uniform(0, 6)
        found = slots(alice, bob, alice_phases, bob_phases, channel, sop, offset)
        assert found.shape == (3, 2, 3, 2)
        for i, alice_phase in enumerate(alice_phases * (1 + alice.modulator_error_rad / pi)):
            _, leaving = send({0: sop}, alice, elements[0], elements[1], alice_phase)
            scale = 1 / sqrt(sum(energy(field) for field in leaving.values()))
            # The offset is a difference of the lengths of the arms; the splitter's half turn is taken to belong to it.
            turns = {0: scale, 1: scale * np.exp(1j * (offset + pi))}
            arriving = {slot: turns[slot] * (channel @ field) for slot, field in leaving.items()}
            for j, bob_phase in enumerate(bob_phases * (1 + bob.modulator_error_rad / pi)):
                ports = send(arriving, bob, elements[2], elements[3], bob_phase)
                want = [[energy(port[slot]) for port in ports] for slot in range(3)]
                np.testing.assert_allclose(found[i, j], want, atol=1e-12)


def test_no_photon_is_lost_without_loss_whatever_else_is_wrong():
    dice = np.random.default_rng(4)
    for _ in range(50):
        births, errors = random_birefringence(dice.random, 4), dice.uniform(-1, 1, 4)
        pair = device(births, errors, splitter_reflectivity=dice.uniform(0.1, 0.9), modulator_error_rad=0.2)
        channel, inputs = random_birefringence(dice.random, 5), random_birefringence(dice.random, 5)[:, :, 0]
        all_slots = slots(*pair, ALICE_PHASES_RAD, BOB_PHASES_RAD, channel, inputs, dice.uniform(0, 6, 5))
        np.testing.assert_allclose(all_slots.sum(axis=(-1, -2)), 1, atol=1e-12)
        assert (all_slots >= -1e-15).all()


def test_lossy_arms_take_what_their_share_of_the_light_loses():
    bob = Michelson(long=Arm(loss_db=2.0), short=Arm(loss_db=0.5), splitter_reflectivity=0.3)
    total = slots(IDEAL, bob, ALICE_PHASES_RAD, BOB_PHASES_RAD).sum(axis=(-1, -2))
    np.testing.assert_allclose(total, 0.7 * 10**-0.4 + 0.3 * 10**-0.1, atol=1e-12)


# Polarisation drops out


def test_faraday_mirrors_keep_every_fringe_at_full_contrast_and_in_place():
    found = fringes_of_devices(1_000, 0.0, seed=5)
    np.testing.assert_allclose(found, 1, atol=1e-12)


def test_a_fringes_place_is_the_arms_common_phases_and_does_not_know_the_channel():
    dice = np.random.default_rng(6)
    births = random_birefringence(dice.random, 4) * np.exp(1j * np.array([0.3, -0.2, 0.7, 0.4]))[:, None, None]
    found = fringe(*device(births), random_birefringence(dice.random, 100))
    # Light passes each arm twice: 2 (0.3 + 0.2) at Alice less 2 (0.7 - 0.4) at Bob.
    np.testing.assert_allclose(found, np.exp(0.4j), atol=1e-12)


def test_a_channel_that_loses_one_polarisation_costs_light_but_no_contrast():
    channel = np.diag([1.0, 0.5]).astype(complex)
    np.testing.assert_allclose(visibility(IDEAL, IDEAL, channel, np.array([0.6, 0.8])), 1, atol=1e-12)
    light = slots(IDEAL, IDEAL, ALICE_PHASES_RAD, BOB_PHASES_RAD, channel, np.array([0.6, 0.8])).sum(axis=(-1, -2))
    # Alice's mirrors have swapped the axes by then.
    np.testing.assert_allclose(light, 0.8**2 + 0.25 * 0.6**2, atol=1e-12)


def test_scrambling_the_fibre_leaves_the_error_rate_alone_with_perfect_mirrors():
    dice = np.random.default_rng(7)
    arm = Arm(birefringence=random_birefringence(dice.random, 1)[0], loss_db=1.0)
    alice = Michelson(long=arm, short=Arm(loss_db=0.4))
    bob = Michelson(long=replace(arm, loss_db=1.3), splitter_reflectivity=0.48)
    still = bb84_table(alice, bob, 0.1)
    assert 0.002 < error_rate(still) < 0.05
    moving = bb84_table(alice, bob, 0.1, random_birefringence(dice.random, 500))
    np.testing.assert_allclose(moving, np.broadcast_to(still, moving.shape), atol=1e-12)


def test_plain_mirrors_fade():
    # Mean 0.67, nine tenths between 0.24 and 0.98 (each rounded to 0.01).
    seen = np.abs(fringes_of_devices(2_000, 0.0, seed=8, mirror=PLAIN, sops=1)[:, 0])
    assert_mean(seen, 0.67, 0.005)
    for limit, share in ((0.24, 0.05), (0.98, 0.95)):
        low, high = np.mean(seen < limit - 0.005), np.mean(seen < limit + 0.005)
        slack = SIGMAS * sqrt(share * (1 - share) / len(seen))
        assert low - slack < share < high + slack


# Mirrors that turn too far


def test_one_wrong_mirror_is_a_phase_of_twice_its_error_times_what_the_polarisation_makes_of_it():
    # exp(-2ie n.sigma) has the mean cos 2e - i sin 2e n.s for light of the Stokes vector s.
    error = radians(2)
    for arm in range(4):
        dice = np.random.default_rng(arm)
        births = random_birefringence(dice.random, 4)
        pair = device(births, np.eye(4)[arm] * error)
        found = fringe(*pair, random_birefringence(dice.random, 2_000))[:, 0]
        np.testing.assert_allclose(found.real, cos(2 * error), atol=1e-12)
        assert np.abs(found.imag).max() <= sin(2 * error) + 1e-12
        if arm >= 2:
            # The channel brings Bob every polarisation alike, so n.s is uniform between -1 and 1.
            assert stats.kstest(found.imag / sin(2 * error), stats.uniform(-1, 2).cdf).pvalue > FALSE_ALARM
        else:
            # Alice's laser has but one.
            np.testing.assert_allclose(found, found[0], atol=1e-12)


@pytest.mark.parametrize(
    ("largest_deg", "mean_visibility", "lowest", "tracked_percent", "untracked_percent", "worst_percent", "phase_rad"),
    [
        (0.5, (0.99987, 5e-6), 0.9989, (0.007, 5e-4), (0.010, 5e-4), 0.07, 0.012),
        (1.0, (0.99946, 5e-6), 0.9939, (0.027, 5e-4), (0.041, 5e-4), 0.30, 0.023),
        (2.0, (0.9978, 5e-5), 0.984, (0.11, 5e-3), (0.16, 5e-3), 1.1, 0.046),
        (3.0, (0.9951, 5e-5), 0.953, (0.24, 5e-3), (0.37, 5e-3), 2.4, 0.070),
        (5.0, (0.987, 5e-4), 0.898, (0.67, 5e-3), (1.0, 5e-2), 7.1, 0.117),
    ],
)
def test_mirror_errors_cost_what_is_known(
    largest_deg, mean_visibility, lowest, tracked_percent, untracked_percent, worst_percent, phase_rad
):
    found = fringes_of_devices(800, radians(largest_deg), seed=int(10 * largest_deg))
    seen = np.abs(found)
    assert_mean(seen.mean(axis=1), *mean_visibility)
    assert_mean(50 * (1 - seen).mean(axis=1), *tracked_percent)
    untracked = 50 * (1 - found.real)
    assert_mean(untracked.mean(axis=1), *untracked_percent)
    squares = (np.angle(found) ** 2).mean(axis=1)
    assert_mean(squares, phase_rad**2, 2 * 5e-4 * phase_rad)
    # No device can be worse than four phases of 2e that add up.
    bound = cos(8 * radians(largest_deg))
    assert bound <= seen.min()
    assert bound <= lowest
    assert untracked.max() <= 50 * (1 - bound)
    assert worst_percent <= 50 * (1 - bound)


def test_a_tracked_phase_leaves_half_of_what_the_visibility_lacks():
    dice = np.random.default_rng(12)
    for _ in range(50):
        births, errors = random_birefringence(dice.random, 4), dice.uniform(-0.1, 0.1, 4)
        # The same phase in both axes: what a wrong mirror sends back is modulated as the rest is.
        pair = device(births, errors, phase_tm_over_te=1.0)
        channel = random_birefringence(dice.random, 1)[0]
        seen = fringe(*pair, channel)[0]
        table = bb84_table(*pair, -np.angle(seen), channel)
        assert error_rate(table) == pytest.approx((1 - abs(seen)) / 2, abs=1e-12)
        untracked = bb84_table(*pair, 0.0, channel)
        assert error_rate(untracked) == pytest.approx((1 - seen.real) / 2, abs=1e-12)


def test_four_channels_stand_for_all():
    dice = np.random.default_rng(13)
    pair = device(random_birefringence(dice.random, 4), radians(3) * np.array([1, -1, 1, 1]))
    exact = bb84_table(*pair, 0.05, ANY_CHANNEL).mean(axis=0)
    sampled = bb84_table(*pair, 0.05, random_birefringence(dice.random, 20_000))
    slack = SIGMAS * sampled.std(axis=0) / sqrt(len(sampled))
    # Where the channel changes nothing there is no scatter to allow for.
    assert (np.abs(sampled.mean(axis=0) - exact) <= slack + 1e-12).all()
    assert error_rate(exact) > error_rate(bb84_table(*device([None] * 4), 0.05))


def test_scrambling_costs_what_bobs_mirrors_do_not_return():
    # Mean over the fibre: tr(long^+ short) / 2 of Bob's arms; errors of e and -e in Bob's two arms, both without
    # birefringence, are rotations about one axis that add up to a phase of 4e.
    error = radians(2)
    pair = device([None] * 4, (0, 0, error, -error), phase_tm_over_te=1.0)
    table = bb84_table(*pair, 0.0, ANY_CHANNEL).mean(axis=0)
    assert error_rate(table) == pytest.approx((1 - cos(4 * error)) / 2, abs=1e-12)
    assert fringe(*pair, ANY_CHANNEL)[:, 0].mean() == pytest.approx(cos(4 * error), abs=1e-12)


# Loss, slots and states


@pytest.mark.parametrize(
    ("loss_db", "unbalanced_db", "balanced_db", "ratio", "bloch_z"),
    [
        (0.0, 3.0, 3.0, (1.0, 2.0, 1.0), 0.0),
        (2.0, 5.5, 7.0, (1.0, 0.80, 0.16), 0.43),
        (3.0, 7.0, 9.0, (1.0, 0.50, 0.06), 0.60),
    ],
)
def test_modulator_loss_sets_the_slots(loss_db, unbalanced_db, balanced_db, ratio, bloch_z):
    lossy = Arm(loss_db=loss_db)
    unbalanced, balanced = Michelson(long=lossy), Michelson(long=lossy, short=lossy)
    lost_db = []
    for both in (unbalanced, balanced):
        energies = slots(both, both, ALICE_PHASES_RAD, BOB_PHASES_RAD).sum(axis=-1)
        np.testing.assert_allclose(energies, np.broadcast_to(energies[0, 0], energies.shape), atol=1e-12)
        lost_db.append(-10 * np.log10(energies[0, 0, 1]))
        if both is unbalanced:
            np.testing.assert_allclose(energies[0, 0] / energies[0, 0, 0], ratio, atol=0.0051)
    assert lost_db == pytest.approx([unbalanced_db, balanced_db], abs=0.051)
    assert unbalanced.bloch_z == pytest.approx(bloch_z, abs=0.0051)
    assert balanced.bloch_z == 0.0


@pytest.mark.parametrize("loss_db", [0.5, 2.0, 3.0])
def test_visibility_cannot_see_arms_that_are_unequal_in_the_same_way(loss_db):
    both = Michelson(long=Arm(loss_db=loss_db))
    np.testing.assert_allclose(visibility(both, both, ANY_CHANNEL), 1, atol=1e-12)
    assert error_rate(bb84_table(both, both)) == pytest.approx(0.0, abs=1e-12)
    # Yet the two bits of a basis overlap, by the component on the Bloch sphere's axis.
    long, short = both.arms(ALICE_PHASES_RAD)
    states = np.array([np.concatenate([short[:, 0], arm[:, 0]]) for arm in long])
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    for zero, one in ((0, 1), (2, 3)):
        assert abs(np.vdot(states[zero], states[one])) == pytest.approx(both.bloch_z)
    assert both.bloch_z > 0.1
    # The side slots show it.
    energies = slots(both, both, np.zeros(1), np.zeros(1)).sum(axis=-1)[0, 0]
    assert (energies[0] - energies[2]) / (energies[0] + energies[2]) > 0.2


def test_visibility_sees_arms_that_are_unequal_at_one_end_only():
    lossy = Michelson(long=Arm(loss_db=1.0))
    amplitude = 10**-0.1
    want = 2 * amplitude / (1 + amplitude**2)
    np.testing.assert_allclose(visibility(lossy, IDEAL), want, atol=1e-12)
    np.testing.assert_allclose(visibility(IDEAL, lossy), want, atol=1e-12)


def test_an_uneven_splitter_blurs_only_the_detector_behind_the_circulator_and_only_bobs():
    uneven = Michelson(splitter_reflectivity=0.45)
    want = 2 * 0.45 * 0.55 / (0.45**2 + 0.55**2)
    np.testing.assert_allclose(visibility(IDEAL, uneven), [want, 1], atol=1e-12)
    np.testing.assert_allclose(visibility(uneven, IDEAL), 1, atol=1e-12)


# Modulators


def test_a_modulator_is_passed_on_both_axes_whatever_the_polarisation():
    dice = np.random.default_rng(14)
    births = random_birefringence(dice.random, 4)
    channel, inputs = random_birefringence(dice.random, 50), random_birefringence(dice.random, 50)[:, :, 0]
    for ratio in (0.0, 1 / 3, 1.0):
        table = bb84_table(*device(births, phase_tm_over_te=ratio), 0.2, channel, inputs)
        want = 0.5 * Paths.of_visibility(1.0).shares(0.2)
        np.testing.assert_allclose(table, np.broadcast_to(want, table.shape), atol=1e-12)


def test_a_wrong_half_wave_voltage_is_a_phase_error_in_proportion():
    alice = Michelson(modulator_error_rad=0.1)
    table = bb84_table(alice, IDEAL)
    wrong = np.array([table[0, 0, 1], table[1, 0, 0], table[2, 1, 1], table[3, 1, 0]])
    np.testing.assert_allclose(wrong, (1 - np.cos([0.0, 0.1, 0.05, 0.15])) / 4, atol=1e-12)


def test_a_wrong_mirror_and_unlike_axes_give_states_that_the_passive_faraday_mirror_attack_tells_apart():
    # The best guess for each state is right with 7/8, 5/8, 5/8, 7/8 (in the order of the phases), whatever the error
    # is; two like axes or a perfect mirror leave two dimensions, where it is right with 1/2.
    def confidences(error_rad, ratio):
        alice = Michelson(long=Arm(mirror_error_rad=error_rad), phase_tm_over_te=ratio)
        long, short = alice.arms(np.arange(4) * pi / 2)
        states = np.array([np.concatenate([short[:, 0], arm[:, 0]]) for arm in long]) / sqrt(2)
        mixture = states.T @ states.conj() / 4
        inverse = np.linalg.pinv(mixture, rcond=1e-9, hermitian=True)
        return [float((state.conj() @ inverse @ state).real) / 4 for state in states]

    for error_deg in (0.5, 1, 5):
        assert confidences(radians(error_deg), 1 / 3) == pytest.approx([0.875, 0.625, 0.625, 0.875], abs=1e-6)
        assert confidences(radians(error_deg), 1.0) == pytest.approx([0.5] * 4)
    assert confidences(0.0, 1 / 3) == pytest.approx([0.5] * 4)


# Interface


def test_the_table_of_a_link_is_the_ideal_one_times_the_half_of_the_central_slot():
    table = bb84_table(IDEAL, IDEAL)
    want = 0.5 * np.array([[[1, 0], [0.5, 0.5]], [[0, 1], [0.5, 0.5]], [[0.5, 0.5], [1, 0]], [[0.5, 0.5], [0, 1]]])
    np.testing.assert_allclose(table, want, atol=1e-12)
    np.testing.assert_array_equal(table, central_slot(IDEAL, IDEAL, ALICE_PHASES_RAD, BOB_PHASES_RAD))


def test_offsets_and_channels_lead_the_result():
    dice = np.random.default_rng(15)
    pair = device(random_birefringence(dice.random, 4), (0.02, 0.05, -0.03, 0.04))
    offsets, channel = np.linspace(0, 6, 7), random_birefringence(dice.random, 3)
    many = bb84_table(*pair, offsets[:, None], channel)
    assert many.shape == (7, 3, 4, 2, 2)
    np.testing.assert_allclose(many[5, 2], bb84_table(*pair, offsets[5], channel[2]), atol=1e-15)
    # Three offsets tell all others.
    paths = Paths.of_table(*(bb84_table(*pair, at, channel[1]) for at in (0.0, pi / 2, pi)))
    np.testing.assert_allclose(0.5 * paths.shares(offsets[4]), many[4, 1], atol=1e-12)


def test_random_birefringence_has_no_preferred_direction():
    dice = np.random.default_rng(16)
    births = random_birefringence(dice.random, 20_000)
    np.testing.assert_allclose(
        births.conj().swapaxes(1, 2) @ births, np.broadcast_to(np.eye(2), births.shape), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(births), 1, atol=1e-12)
    # Stokes parameters of an output, and of one after a further element, are uniform (Archimedes); so are the
    # squares of the first row.
    for matrices in (births, births @ random_birefringence(np.random.default_rng(17).random, 1)):
        outputs = matrices[:, :, 0]
        for sigma in PAULI:
            stokes = np.einsum("ni,ij,nj->n", outputs.conj(), sigma, outputs).real
            assert stats.kstest(stokes, stats.uniform(-1, 2).cdf).pvalue > FALSE_ALARM
        angle = np.angle(matrices[:, 0, 0] * matrices[:, 0, 1])
        assert stats.kstest(angle, stats.uniform(-pi, 2 * pi).cdf).pvalue > FALSE_ALARM


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Arm(loss_db=-0.1), "loss_db"),
        (lambda: Arm(loss_db=float("nan")), "loss_db"),
        (lambda: Arm(mirror="wet"), "mirror"),
        (lambda: Arm(mirror_error_rad=float("inf")), "mirror_error_rad"),
        (lambda: Arm(birefringence=np.diag([1.0, 0.9]).astype(complex)), "birefringence"),
        (lambda: Arm(birefringence=np.eye(3, dtype=complex)), "birefringence"),
        (lambda: Michelson(splitter_reflectivity=1.0), "splitter_reflectivity"),
        (lambda: Michelson(phase_tm_over_te=-0.1), "phase_tm_over_te"),
        (lambda: Michelson(modulator_error_rad=float("nan")), "modulator_error_rad"),
        (lambda: bb84_table(IDEAL, IDEAL, channel=np.eye(3, dtype=complex)), "channel"),
        (lambda: bb84_table(IDEAL, IDEAL, input_sop=np.array([1.0, 1.0], complex)), "input_sop"),
    ],
)
def test_what_cannot_be_is_refused_by_field(make, field):
    with pytest.raises(RequestRefused, match=field):
        make()
