"""gch-bench: does internal noise make a backbone more reliable under shift?"""

__version__ = "0.1.0"
