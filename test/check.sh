#!/bin/bash
# The part of `make check` that no linter covers: formatting, generated files,
# go.mod, and the repository's own rules (package test/repo).
#
#   test/check.sh DIR-OF-TOOLS
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools=$1
failed=0

fail() {
	echo "check: $1" >&2
	failed=1
}

unformatted=$(git ls-files -z --cached --others --exclude-standard '*.go' | xargs -0 -r ls 2>/dev/null | xargs -r gofmt -l)
[ -z "$unformatted" ] || fail "not formatted (gofmt -w): $unformatted"

# Generated files are made again elsewhere, and compared with what is committed.
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
mapfile -t protos < <(find pkg -name '*.proto' | sort)
PATH=$tools:$PATH protoc --proto_path=. --go_out="$fresh" --go_opt=paths=source_relative \
	--go-grpc_out="$fresh" --go-grpc_opt=paths=source_relative "${protos[@]}"
while read -r made; do
	# Another protoc of the same plugins writes its own version into a comment.
	if ! diff -u <(grep -vE '^// (- )?[[:space:]]*protoc +v' "$made") <(grep -vE '^// (- )?[[:space:]]*protoc +v' "${made#"$fresh"/}"); then
		fail "${made#"$fresh"/} is not what its .proto says; run make generate"
	fi
done < <(find "$fresh" -type f)

go mod tidy -diff || fail "go.mod or go.sum is not tidy; run go mod tidy"
(cd tools && go mod tidy -diff) || fail "tools/go.mod or go.sum is not tidy; run go mod tidy there"
go mod verify >/dev/null || fail "a module in the cache was changed"
go test -count=1 ./test/repo/... || fail "a rule of the repository is broken"

[ "$failed" = 0 ] && echo "check: all is well"
exit "$failed"
