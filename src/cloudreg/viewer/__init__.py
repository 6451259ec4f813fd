"""What a person looks at: the quality-control report."""

from cloudreg.viewer.report import write_registration_report, write_run_report

__all__ = ["write_registration_report", "write_run_report"]
