#!/bin/sh
# Fuzzes every codec for SECONDS each: run.sh SECONDS [NAME...]. Exit 1 when one of them traps, hangs or contradicts itself.
# New inputs stay in $FUZZ_DIR (default .build/fuzz) and are the next run's start.
set -eu
[ $# -ge 1 ] || { echo "usage: $0 SECONDS [NAME...]" >&2; exit 2; }
seconds=$1; shift
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
dir=${FUZZ_DIR:-$root/.build/fuzz}
[ $# -gt 0 ] || set -- RequestHead ResponseHead ProxyHeader ChunkedBody Events JSON Frames Inflate Translation PageFile
mkdir -p "$dir"
status=0
for name; do
    case $name in JSON) module=JSONWire ;; Frames) module=ControlWire ;; Inflate | Translation) module=$name ;; PageFile) module=SQLiteStore ;; *) module=HTTPWire ;; esac
    # One module of the sources, of Bytes and Vocabulary, and of the harness.
    work=$dir/$name.sources
    rm -rf "$work"; mkdir -p "$work" "$dir/$name.corpus"
    cp "$root/Sources/$module"/*.swift "$root/Sources/Bytes"/*.swift "$root/Sources/Vocabulary"/*.swift "$work/"
    link=""
    if [ $module = ControlWire ]; then
        # Its messages need SwiftProtobuf: a debug build has made that.
        built=$(cd "$root" && swift build --show-bin-path)
        [ -f "$built/Modules/SwiftProtobuf.swiftmodule" ] || (cd "$root" && swift build --target ControlWire)
        link="-I $built/Modules $built/SwiftProtobuf.build/*.o"
    fi
    dict=$here/$module.dict
    case $module in
    Inflate)
        link="-I $root/Sources/CZlib -I $root/Sources/CZstd -lz -lzstd"; dict= ;;
    SQLiteStore)
        # One file of it, which uses no SQLite, and the values that it gives.
        rm "$work"/*.swift
        cp "$root/Sources/SQLiteStore/PageFile.swift" "$root/Sources/Store/StoreError.swift" "$work/"
        sed -n '/^public enum SQLValue/,/^}/p' "$root/Sources/Store/SQL.swift" >"$work/SQLValue.swift"
        dict= ;;
    Translation)
        # Its layer below becomes one module with it.
        cp "$root/Sources/JSONWire"/*.swift "$work/"
        dict=$here/Translation.dict ;;
    esac
    cp "$here/$name.swift" "$work/Harness.swift"
    sed -i -E '/^(public |internal )?import (Vocabulary|Bytes|JSONWire|Store)$/d' "$work"/*.swift
    swiftc -swift-version 6 -O -sanitize=fuzzer -parse-as-library -module-name Fuzz -o "$dir/$name" "$work"/*.swift $link
    echo "== $name, $seconds s"
    # -rss_limit and -timeout end what grows or hangs.
    if ! "$dir/$name" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=1024 -max_len=65536 -print_final_stats=1 \
        -artifact_prefix="$dir/$name." ${dict:+-dict="$dict"} "$dir/$name.corpus" >"$dir/$name.log" 2>&1; then
        tail -n 30 "$dir/$name.log"
        status=1
    fi
    grep -aE 'number_of_executed_units|new_units_added|peak_rss' "$dir/$name.log" || :
done
exit $status
