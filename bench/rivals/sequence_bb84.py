"""SeQUeNCe's BB84 over one fibre, timed: prints one JSON object. Runs in a virtual environment of its own.

    python sequence_bb84.py --loss-db 11.5 --seconds 0.0005

The same line as ours as far as the package goes: clock, loss, mean photon number (its source has no decoy levels: the
mean over ours), efficiency with the receiver's loss in it, dark counts. It has no afterpulses, drift or finite gates;
dead time is its detectors' count rate. No logging, no progress bar, no error correction on top.
"""

import argparse
import json
import time

from sequence.components.optical_channel import ClassicalChannel, QuantumChannel
from sequence.kernel.timeline import Timeline
from sequence.qkd.BB84 import pair_bb84_protocols
from sequence.topology.node import QKDNode

KEY_BITS = 2048


class Keys:
    """Takes what BB84 makes, at both ends."""

    count = 0

    def pop(self, *_: object, **__: object) -> None:
        """A key of KEY_BITS bits at one end."""
        self.count += 1


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--loss-db", type=float, default=11.5)
    parser.add_argument("--clock-hz", type=float, default=1.25e9)
    parser.add_argument("--mean-photons", type=float, default=0.3048)
    parser.add_argument("--efficiency", type=float, default=0.0314)
    parser.add_argument("--dark-hz", type=float, default=1250.0)
    parser.add_argument("--dead-s", type=float, default=100e-9)
    parser.add_argument("--seconds", type=float, default=0.0005, help="Of light.")
    options = parser.parse_args()
    line = Timeline(1e12)
    line.show_progress = False
    alice, bob = (QKDNode(name, line, stack_size=1) for name in ("alice", "bob"))
    alice.set_seed(1)
    bob.set_seed(2)
    pair_bb84_protocols(alice.protocol_stack[0], bob.protocol_stack[0])
    # All the loss on a short way: its length is only delay, in which the package would go on sending for nothing.
    metres = 100.0
    for name, ends in (("ab", (alice, bob)), ("ba", (bob, alice))):
        quantum = QuantumChannel(
            f"q{name}", line, attenuation=options.loss_db / metres, distance=metres, polarization_fidelity=0.99,
            frequency=options.clock_hz,
        )  # fmt: skip
        quantum.set_ends(ends[0], ends[1].name)
        ClassicalChannel(f"c{name}", line, distance=metres).set_ends(ends[0], ends[1].name)
    for name, value in (("frequency", options.clock_hz), ("mean_photon_num", options.mean_photons)):
        alice.update_lightsource_params(name, value)
    for index in (0, 1):
        for name, value in (
            ("efficiency", options.efficiency),
            ("dark_count", options.dark_hz),
            ("count_rate", 1 / options.dead_s),
            ("time_resolution", 100),
        ):
            bob.update_detector_params(index, name, value)
    keys = Keys()
    for node in (alice, bob):
        node.protocol_stack[0].upper_protocols.append(keys)
    line.init()
    # Bursts of about 5,000 pulses until the time is over; light begins one travelling time late.
    delay_ps = metres / 2e8 * 1e12
    alice.protocol_stack[0].push(KEY_BITS, 1 << 30, run_time=delay_ps + options.seconds * 1e12)
    began_s = time.process_time()
    line.run()
    took_s = time.process_time() - began_s
    print(
        json.dumps(
            {
                "pulses": options.seconds * options.clock_hz,
                "cpu_s": took_s,
                "sifted_bits": keys.count // 2 * KEY_BITS,
            }
        )
    )


if __name__ == "__main__":
    main()
