"""The findings of the five seed documents as claims that these sweeps can test."""

from results_analysis.findings import cpql, cql, rlpd, sac

FINDINGS = [*cpql.CLAIMS, *sac.CLAIMS, *cql.CLAIMS, *rlpd.CLAIMS]
