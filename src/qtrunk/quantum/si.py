"""Constants of nature that the SI fixes (BIPM, The International System of Units, 9th edition, 2019); exact, SI units.

scipy.constants has them, and takes a third of a second to load.
"""

LIGHT_SPEED = 299_792_458.0
PLANCK = 6.626_070_15e-34
BOLTZMANN = 1.380_649e-23
ELEMENTARY_CHARGE = 1.602_176_634e-19
