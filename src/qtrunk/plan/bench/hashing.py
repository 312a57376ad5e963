"""Figures of hashing: privacy amplification by Toeplitz matrices, and the polynomial hash under message tags."""

from functools import partial

import numpy as np
from cryptography.hazmat.primitives.poly1305 import Poly1305

from qtrunk import kernels
from qtrunk.plan.bench.figures import Figure, environment, median, rates, rival

OUTPUT_SHARE = 0.3
"""Output bits for each input bit: a link of some 70 km."""
MESSAGE_OCTETS = 1 << 20


def _octets(count: int, seed: int) -> kernels.U8:
    """So many octets that look random, shape [count]."""
    return kernels.stream_words(bytes([seed]) * 32, np.arange(count // 8 + 1, dtype=np.uint64)).view(np.uint8)[:count]


def _block(bits_count: int) -> tuple[kernels.U8, list[kernels.U8]]:
    """Packed bits to hash, and two seeds for them."""
    octets = (bits_count + int(OUTPUT_SHARE * bits_count) + 6) // 8
    return _octets((bits_count + 7) // 8, 1), [_octets(octets, seed) for seed in (2, 3)]


def _amplify(bits: kernels.U8, seeds: list[kernels.U8], bits_count: int, calls: int) -> float:
    """Hash a block so many times, each with another seed than before; gigabits of input."""
    output_bits = int(OUTPUT_SHARE * bits_count)
    for call in range(calls):
        kernels.toeplitz_hash(bits, bits_count, seeds[call % 2], output_bits)
    return 1e-9 * bits_count * calls


def _transforms(bits_count: int) -> tuple[str, float]:
    """The fastest floating-point transforms and their gigabits of input a second."""
    python = environment("transforms", ("numpy", "scipy", "pyfftw"))
    found = rival(python, "toeplitz_fft.py", str(bits_count), str(int(OUTPUT_SHARE * bits_count)))
    name = max(found, key=lambda key: found[key])
    return f"{name}, double precision", found[name] / 1e9


def amplification(runs: int, with_rivals: bool) -> list[Figure]:
    """Input bits a second for blocks of three sizes, a fresh seed for each block."""
    made = []
    for exponent in (20, 22, 24):
        bits_count = 1 << exponent
        samples = rates(partial(_amplify, *_block(bits_count), bits_count, 1 << (27 - exponent)), runs)
        name, theirs = _transforms(bits_count) if with_rivals else ("", None)
        made.append(
            Figure(
                name=f"privacy amplification, 2^{exponent} bits to {OUTPUT_SHARE}",
                value=median(samples),
                unit="Gbit/s of input",
                goal=2.0,
                samples=samples,
                rival=name,
                rival_value=theirs,
                note="Toeplitz matrix, exact; packed bits in and out. The rival's bits are numbers already",
            )
        )
    return made


def against_cryptomite(runs: int, with_rivals: bool) -> list[Figure]:
    """The same beside a library of randomness extractors that is exact too (number-theoretic transforms)."""
    bits_count = 1 << 20
    samples = rates(partial(_amplify, *_block(bits_count), bits_count, 128), runs)
    theirs = None
    if with_rivals:
        python = environment("cryptomite", ("cryptomite==0.3.0",))
        output_bits = int(OUTPUT_SHARE * bits_count)
        theirs = rival(python, "toeplitz_cryptomite.py", str(bits_count), str(output_bits))["bits_per_s"] / 1e9
    return [
        Figure(
            name="privacy amplification, 2^20 bits, exact rival",
            value=median(samples),
            unit="Gbit/s of input",
            samples=samples,
            rival="cryptomite 0.3.0" if theirs else "",
            rival_value=theirs,
        )
    ]


def _sign(key: bytes, message: kernels.U8, calls: int) -> float:
    """Gigabits hashed."""
    for _ in range(calls):
        kernels.poly_hash(key, message)
    return 8e-9 * len(message) * calls


def _sign_poly1305(key: bytes, message: bytes, calls: int) -> float:
    for _ in range(calls):
        Poly1305.generate_tag(key, message)
    return 8e-9 * len(message) * calls


def polynomial(runs: int, with_rivals: bool) -> list[Figure]:
    """The hash under message tags, and Poly1305 of the cryptography package, over the same message."""
    message, key = _octets(MESSAGE_OCTETS, 4), bytes(range(32))
    samples = rates(partial(_sign, key[:16], message, 200), runs)
    theirs = rates(partial(_sign_poly1305, key, message.tobytes(), 200), runs) if with_rivals else ()
    return [
        Figure(
            name="polynomial hash over GF(2^128), 1 MiB",
            value=median(samples),
            unit="Gbit/s",
            goal=150.0,
            samples=samples,
            rival="Poly1305 of cryptography" if theirs else "",
            rival_value=median(theirs) if theirs else None,
            note="before its pad of quantum key: one hash of 128 bits",
        )
    ]
