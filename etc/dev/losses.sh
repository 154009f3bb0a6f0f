#!/bin/sh
# Prints what the tests of issue 11 have counted as one table: number, what was done, counts. $1: the file that they wrote (CODEX_LB_TEST_TALLY).
set -eu
echo
echo "== what was lost"
sort -n -k1,1 "$1" | awk -F '\t' '{ printf "%3s  %-52s %s\n", $1, $2, $3; seen[$1] = 1 }
    END { for (i = 1; i <= 14; i++) if (!seen[i]) printf "%3s  not run\n", i }'
