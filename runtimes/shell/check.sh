#!/bin/sh
# Runs in the finished tree, as a user that owns nothing there: what sessions count on must be found and readable.
set -eu
for program in bash awk gawk base64 bc cmp curl dig file find g++ gcc git grep gzip head jq less ls make mktemp nano \
    openssl patch perl pip3 ps python3 rsync sed sort sqlite3 strace tail tar tree unzip vi wget xargs xz zip zstd; do
    command -v "$program" >/dev/null || { echo "missing: $program"; exit 1; }
done
printf 'a\0b\0' | sort -z | xargs -0 -n 1 echo >/dev/null
find /etc/passwd -printf '%s\n' >/dev/null
echo 'int main(void) { return 0; }' >"$SCRATCH/check.c"
gcc -o "$SCRATCH/check" "$SCRATCH/check.c"
"$SCRATCH/check"
python3 -c 'import ssl, sqlite3, venv, yaml, requests'
git --version
