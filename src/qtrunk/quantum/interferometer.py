"""The two unbalanced Faraday-Michelson interferometers and the fibre between them, from Jones matrices.

Light enters an interferometer at its splitter, runs through a long and a short arm to a mirror each, and comes back
through the same splitter. So a photon reaches Bob's detectors in one of three slots: early (short arm at both ends),
central (one long arm, Alice's or Bob's: these two paths interfere) or late (long arm at both). Everything here follows
from adding up the amplitudes of those paths.

Polarisation is a vector of two complex amplitudes in axes that stay fixed in space when light turns back. A reciprocal
element with the matrix J on the way out has the transpose of J on the way back; a mirror behind a rotator that turns
twice by 45 degrees, whichever way light goes, is a rotation R by 90 degrees. For every J of two rows

    J^T R J = det(J) R,

so each arm is the same R times a number, both paths are R C R with the channel's C, and neither the fringe's contrast
nor its phase knows of any birefringence (M. Martinelli, Opt. Commun. 72, 341 (1989), for the mirror; X.-F. Mo et al.,
Opt. Lett. 30, 2632 (2005), for the two interferometers). A rotation that is wrong by 2e puts
exp(-2ie n.sigma) behind it, n a direction on the Poincare sphere that the arm's birefringence decides: a phase between
-2e and 2e that depends on the polarisation, and in second order a loss of contrast.

A modulator next to the mirror of the long arm is passed out and back in orthogonal polarisations, so the phase is the
sum of those of its two axes. What comes back unrotated from a wrong mirror passes one axis twice and has another phase:
the opening of the passive Faraday-mirror attack (S.-H. Sun, M.-S. Jiang and L.-M. Liang, Phys. Rev. A 83, 062331
(2011)).

Conventions. Probabilities are per photon of the double pulse that leaves Alice and reaches Bob: the mean photon number
is set there, so what her interferometer returns towards the laser is free. The fibre's loss, and all loss at Bob
outside his two arms, is counted elsewhere. Detector 0 stands behind the circulator, detector 1 at the other port of
Bob's splitter. Phases are of the central slot's fringe, Alice's less Bob's plus the offset between the
interferometers; at 0 all central light is at detector 0 (the half turn that a splitter gives belongs to the offset).
Arrays of channels are of shape (..., 2, 2), of input polarisations (..., 2), of offsets (...); the leading axes of the
three broadcast and lead the result.

Left out: polarisation mode dispersion and everything else that depends on the wavelength within the pulse's spectrum,
polarisation-dependent loss of the arms, and transients of the modulator between light's two passes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, pi, sqrt

import numpy as np
from numpy.typing import NDArray

from qtrunk.base.errors import RequestRefused
from qtrunk.kernels import F64

C128 = NDArray[np.complex128]

FARADAY, PLAIN = "faraday", "plain"
LITHIUM_NIOBATE = 1 / 3
"""Phase of the weaker over the stronger axis of a lithium niobate modulator, about r13 / r33."""
ALICE_PHASES_RAD: F64 = np.array([0, 1, 0.5, 1.5]) * pi
"""By state, 2 basis + bit."""
BOB_PHASES_RAD: F64 = np.array([0, 0.5]) * pi
"""By basis."""
ANY_CHANNEL: C128 = np.array(
    [[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]], np.complex128
)
"""Four channels, shape (4, 2, 2), the mean over which is the mean over all birefringences: exact, as probabilities are
of second order in the channel's matrix and the Pauli matrices are a unitary 1-design."""

_UNIT = np.eye(2, dtype=np.complex128)
_HORIZONTAL = _UNIT[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Arm:
    """One arm, from the splitter to its mirror. RequestRefused, naming the field, for values that cannot be."""

    birefringence: C128 | None = None
    """Jones matrix of the way out, shape (2, 2), unitary; None: none."""
    loss_db: float = 0.0
    """Of one pass, the modulator or the attenuator included; light passes twice."""
    mirror: str = FARADAY
    """`faraday`, or `plain`: no rotator, as in a common Michelson interferometer."""
    mirror_error_rad: float = 0.0
    """Of the rotator, one pass: light is turned by 90 degrees and twice this (plain: by twice this only)."""

    def __post_init__(self) -> None:
        if self.mirror not in (FARADAY, PLAIN):
            raise RequestRefused(f"mirror {self.mirror!r}: faraday or plain")
        if not 0 <= self.loss_db < np.inf:
            raise RequestRefused(f"loss_db {self.loss_db}: must be finite and 0 or more")
        if not isfinite(self.mirror_error_rad):
            raise RequestRefused(f"mirror_error_rad {self.mirror_error_rad}: must be finite")
        if self.birefringence is not None:
            matrix = np.asarray(self.birefringence)
            if matrix.shape != (2, 2) or not np.allclose(matrix.conj().T @ matrix, _UNIT, atol=1e-9):
                raise RequestRefused("birefringence: must be a unitary matrix of shape (2, 2); loss goes to loss_db")

    @property
    def transmittance(self) -> float:
        """Of the energy, out and back."""
        return float(10 ** (-2 * self.loss_db / 10))

    def round_trip(self, first_axis_rad: F64, second_axis_rad: F64) -> C128:
        """Jones matrices out and back with a modulator at the mirror whose axes have these phases in one pass.

        Shape of the phases with (2, 2) behind it.
        """
        turn = (pi / 2 if self.mirror == FARADAY else 0.0) + 2 * self.mirror_error_rad
        mirror = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        axes = np.exp(1j * np.stack([first_axis_rad, second_axis_rad], axis=-1))
        out = _UNIT if self.birefringence is None else np.asarray(self.birefringence, np.complex128)
        # The modulator's matrix is diagonal: out and back it multiplies the mirror's rows and columns.
        modulated = axes[..., :, None] * mirror * axes[..., None, :]
        result: C128 = sqrt(self.transmittance) * (out.T @ modulated @ out)
        return result


@dataclass(frozen=True, eq=False, kw_only=True)
class Michelson:
    """One interferometer. RequestRefused, naming the field, for values that cannot be."""

    long: Arm = Arm()
    """The arm with the modulator."""
    short: Arm = Arm()
    splitter_reflectivity: float = 0.5
    """Share of light that goes to the short arm. Alice's does not matter: either path is reflected once there."""
    phase_tm_over_te: float = LITHIUM_NIOBATE
    """Phase of the modulator's second axis over that of its first; 1: the same in both."""
    modulator_error_rad: float = 0.0
    """Phase reached less phase asked where pi is asked, and in proportion elsewhere: a wrong half-wave voltage."""

    def __post_init__(self) -> None:
        if not 0 < self.splitter_reflectivity < 1:
            raise RequestRefused(f"splitter_reflectivity {self.splitter_reflectivity}: must be between 0 and 1")
        if not 0 <= self.phase_tm_over_te < np.inf:
            raise RequestRefused(f"phase_tm_over_te {self.phase_tm_over_te}: must be finite and 0 or more")
        if not isfinite(self.modulator_error_rad):
            raise RequestRefused(f"modulator_error_rad {self.modulator_error_rad}: must be finite")

    def arms(self, phases_rad: F64) -> tuple[C128, C128]:
        """Round trips through the long arm, shape (phases, 2, 2), and through the short arm, shape (2, 2).

        The phases are those that the modulator is asked for, out and back.
        """
        reached = np.asarray(phases_rad, float) * (1 + self.modulator_error_rad / pi)
        first = reached / (1 + self.phase_tm_over_te)
        still = np.zeros(())
        return self.long.round_trip(first, reached - first), self.short.round_trip(still, still)

    @property
    def bloch_z(self) -> float:
        """Energy of the earlier less that of the later half of the double pulse that leaves, over their sum.

        How far the four states lie off the equator of the Bloch sphere; 0 where both arms lose alike. Its modulus is
        the overlap of the two bits of a basis, and no visibility shows it (A. Ferenczi, V. Narasimhachar and
        N. Luetkenhaus, Phys. Rev. A 86, 042327 (2012)).
        """
        early, late = self.short.transmittance, self.long.transmittance
        return (early - late) / (early + late)


@dataclass(frozen=True, eq=False)
class _Light:
    """Fields behind Bob's arms, before his splitter's shares. P, Q: numbers of Alice's and of Bob's phases."""

    early: C128
    """Short, short: shape (..., 1, 1, 2)."""
    from_alice: C128
    """Alice's long, Bob's short: shape (..., P, 1, 2)."""
    from_bob: C128
    """Alice's short, Bob's long: shape (..., 1, Q, 2)."""
    late: C128
    """Long, long: shape (..., P, Q, 2)."""
    to_short: F64
    """Amplitudes that the splitter, passed twice, leaves to either detector by way of the short arm; shape (2,)."""
    to_long: F64

    def central(self) -> tuple[F64, C128]:
        """Energy of the central slot without interference, and the interference term, shape (..., P, Q, 2) both:
        probabilities are the first plus the real part of the second times exp(i offset).
        """
        energy = _energy(self.from_alice) * self.to_short**2 + _energy(self.from_bob) * self.to_long**2
        overlap = (self.from_bob.conj() * self.from_alice).sum(axis=-1)[..., None]
        return energy, 2 * overlap * (self.to_short * self.to_long)


def _energy(field: C128) -> F64:
    """Of amplitudes of shape (..., 2), as (..., 1), for the axis of detectors."""
    energy: F64 = (field.real**2 + field.imag**2).sum(axis=-1, keepdims=True)
    return energy


def _propagate(
    alice: Michelson,
    bob: Michelson,
    alice_phases_rad: F64,
    bob_phases_rad: F64,
    channel: C128 | None,
    input_sop: C128 | None,
) -> _Light:
    sop = np.asarray(_HORIZONTAL if input_sop is None else input_sop, np.complex128)
    fibre = np.asarray(_UNIT if channel is None else channel, np.complex128)
    if sop.shape[-1:] != (2,) or not np.allclose(_energy(sop), 1, atol=1e-9):
        raise RequestRefused("input_sop: must be of shape (..., 2) and of length 1")
    if fibre.shape[-2:] != (2, 2):
        raise RequestRefused(f"channel of shape {fibre.shape}: must be (..., 2, 2)")
    alice_long, alice_short = alice.arms(alice_phases_rad)
    bob_long, bob_short = bob.arms(bob_phases_rad)
    # Both of Alice's paths are reflected once and transmitted once, so her splitter drops out of what is set at her
    # output.
    sop = sop / sqrt(alice.long.transmittance + alice.short.transmittance)
    fibre, sop = fibre[..., None, None, :, :], sop[..., None, None, :, None]
    first = fibre @ (alice_short @ sop)
    second = fibre @ (alice_long[:, None] @ sop)
    reflected = bob.splitter_reflectivity
    transmitted = 1 - reflected
    other_port = sqrt(reflected * transmitted)
    return _Light(
        early=(bob_short @ first)[..., 0],
        from_alice=(bob_short @ second)[..., 0],
        from_bob=(bob_long @ first)[..., 0],
        late=(bob_long @ second)[..., 0],
        # Back to the circulator light is reflected twice or transmitted twice, a half turn apart, which the offset
        # holds; so the half turn shows at the other port, where either arm is reflected once and transmitted once.
        to_short=np.array([reflected, other_port]),
        to_long=np.array([transmitted, -other_port]),
    )


def slots(
    alice: Michelson,
    bob: Michelson,
    alice_phases_rad: F64,
    bob_phases_rad: F64,
    channel: C128 | None = None,
    input_sop: C128 | None = None,
    offset_rad: float | F64 = 0.0,
) -> F64:
    """Where a photon that reaches Bob's entrance ends: shape (..., Alice's phases, Bob's phases, 3 slots, 2 detectors).

    Slots are early, central, late. What is missing to a sum of 1 is lost in Bob's arms, or in a channel whose matrix is
    not unitary. RequestRefused for a channel or a polarisation that cannot be.
    """
    light = _propagate(alice, bob, alice_phases_rad, bob_phases_rad, channel, input_sop)
    energy, interference = light.central()
    turn = np.exp(1j * np.asarray(offset_rad, float))[..., None, None, None]
    early = _energy(light.early) * light.to_short**2
    central = energy + (interference * turn).real
    late = _energy(light.late) * light.to_long**2
    return np.stack(np.broadcast_arrays(early, central, late), axis=-2)


def central_slot(
    alice: Michelson,
    bob: Michelson,
    alice_phases_rad: F64,
    bob_phases_rad: F64,
    channel: C128 | None = None,
    input_sop: C128 | None = None,
    offset_rad: float | F64 = 0.0,
) -> F64:
    """The central slot of `slots`, for which the gates open: shape (..., Alice's phases, Bob's phases, 2 detectors)."""
    return slots(alice, bob, alice_phases_rad, bob_phases_rad, channel, input_sop, offset_rad)[..., 1, :]


def bb84_table(
    alice: Michelson,
    bob: Michelson,
    offset_rad: float | F64 = 0.0,
    channel: C128 | None = None,
    input_sop: C128 | None = None,
) -> F64:
    """`central_slot` at the phases of BB84: shape (..., 4 states, 2 bases, 2 detectors).

    States are 2 basis + bit. Ideal interferometers give half of (1, 0), (0, 1) or (1/2, 1/2): the other half is in the
    side slots. With `ANY_CHANNEL` as the channel, the mean over the axis of four is that over all polarisations of the
    fibre: what a link sees whose polarisation turns faster than its phase is controlled.
    """
    return central_slot(alice, bob, ALICE_PHASES_RAD, BOB_PHASES_RAD, channel, input_sop, offset_rad)


def fringe(alice: Michelson, bob: Michelson, channel: C128 | None = None, input_sop: C128 | None = None) -> C128:
    """Visibility (modulus) and phase (argument) of the central slot's fringes at modulators at rest, shape (..., 2).

    As the offset moves, detector 0 sees 1 + Re(fringe exp(i offset)) times a mean, detector 1 the same with a minus.
    To keep bits of 0 at detector 0 a control loop sets the offset to minus the phase.
    """
    rest = np.zeros(1)
    energy, interference = _propagate(alice, bob, rest, rest, channel, input_sop).central()
    contrast: C128 = (interference / energy * np.array([1, -1]))[..., 0, 0, :]
    return contrast


def visibility(alice: Michelson, bob: Michelson, channel: C128 | None = None, input_sop: C128 | None = None) -> F64:
    """Largest less smallest probability over their sum, of either detector: shape (..., 2)."""
    return np.abs(fringe(alice, bob, channel, input_sop))


def random_birefringence(uniforms: Callable[[int], F64], count: int) -> C128:
    """So many birefringences, uniform (Haar) over all lossless ones of determinant 1: shape (count, 2, 2).

    `uniforms` gives so many numbers in [0, 1). The first columns are polarisations, uniform over the Poincare sphere.
    """
    share, first, second = uniforms(3 * count).reshape(3, count)
    a = np.sqrt(1 - share) * np.exp(2j * pi * first)
    b = np.sqrt(share) * np.exp(2j * pi * second)
    return np.stack([np.stack([a, -b.conj()], axis=-1), np.stack([b, a.conj()], axis=-1)], axis=-2)
