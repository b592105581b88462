#!/bin/sh
# Gives an app another configuration:
#
#     sh publish.sh APP FILE
#
# The payload is written first and the pointer last. If this ends in between, apps go
# on with what they have, and it can be run again. The file that an app had before
# takes it back: its payload is still there.
set -eu

app=$1
file=$(mktemp)
trap 'rm -f "$file"' EXIT
cp "$2" "$file" # whoever goes on editing changes what comes next, not this

node -e 'JSON.parse(require("fs").readFileSync(process.argv[1], "utf8"))' "$file"
hash=$(sha256sum < "$file" | cut -d ' ' -f 1)
bytes=$(($(wc -c < "$file")))

nearkey kv put remote-config-configs "payload/$hash" --path "$file"
nearkey kv put remote-config-configs "current/$app" "{\"hash\": \"$hash\", \"bytes\": $bytes}"
echo "$app has $hash"
