"""What the probes leave behind: one JSON file with a version, which the processes that share it write in turns.

schema       "superblock.probes/1"
suite name fingerprint status started finished commit machine
settings     what all runs share
planned      by run: seconds, and steps at most
runs         by name of the run (`mqar/hybrid/s1`): task, arm, seed; score (accuracy), score_name, chance, levels (accuracy by
             level), trained_levels; steps, seconds (training), seconds_in_all, parameters, loss, curve; setting, published_setting,
             published, in words; machine, commit, dirty, time
failed       by name: time, reason
results      cells: by task, by arm: mean over seeds with its interval, its levels; see `probes.results`
says         what follows, in words
provenance   tracking.provenance of the start that made the file
"""

from dataclasses import dataclass

from superblock.benchmarks.ablation.record import Record

SCHEMA = "superblock.probes/1"


@dataclass
class ProbesRecord(Record):
    """The runs of one state of the code; further tasks, arms and seeds are added to it."""

    schema: str = SCHEMA
    commit: str = ""
    machine: str = ""
    """Fingerprint of the hardware of the start that made the file."""
