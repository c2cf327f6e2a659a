#!/usr/bin/env bash
# Builds an image of docker/ and tries it: it restores a photo for a user without a name or a home, on a read-only root, the
# result is the user's, no compiler or cache is left in it, it ends when it is asked to, and its service answers.
#
#   scripts/check_docker.sh cpu
#   scripts/check_docker.sh cuda --build-arg ARCHITECTURES=9.0    # options for the build
#   DEBIAN=bookworm scripts/check_docker.sh cpu                   # without a registry: the base is made of Debian's packages
#
# Needs docker, or podman (ENGINE chooses), curl, and with DEBIAN mmdebstrap and the rights of root. No GPU is used.
set -euo pipefail
cd "$(dirname "$0")/.."
trap 'echo "line $LINENO failed: $BASH_COMMAND" >&2' ERR
kind=${1:?name an image, cpu or cuda}
shift
engine=${ENGINE:-$(docker info >/dev/null 2>&1 && echo docker || echo podman)}
image=resshift-fast:$kind

if [[ -n ${DEBIAN:-} ]]; then
    # What python:3-slim has too.
    mmdebstrap --variant=minbase --include=ca-certificates,python3-dev,python3-venv,python-is-python3 "$DEBIAN" |
        "$engine" import - "resshift-fast-base:$DEBIAN"
    set -- --build-arg "BASE=resshift-fast-base:$DEBIAN" "$@"
fi
"$engine" build -f "docker/$kind.Dockerfile" -t "$image" "$@" .
echo "$image: $(($("$engine" image inspect --format '{{.Size}}' "$image") / 1000000)) MB"

folder=$(mktemp -d) name=resshift-fast-check-$$
trap '"$engine" rm --force --volumes "$name" >/dev/null 2>&1 || true; rm -rf "$folder"' EXIT
cp examples/nuthatch.jpg "$folder"
owner=$(id -u):$(id -g) options=(--name "$name" -v "$folder:/work")
if ((EUID == 0)); then
    owner=4321:4321
    chown -R "$owner" "$folder"
elif [[ $engine == *podman ]]; then
    options+=(--userns keep-id)
fi
options+=(--user "$owner")
run() { "$engine" run "${options[@]}" "$@"; }
end() { # STATUS: stop the program, which has 60 seconds until it is killed, and compare its exit status
    "$engine" stop --time 60 "$name" >/dev/null
    local status
    status=$("$engine" inspect --format '{{.State.ExitCode}}' "$name")
    "$engine" rm --volumes "$name" >/dev/null
    [[ $status == "$1" ]] || { echo "the exit status is $status, expected $1" >&2 && return 1; }
}

run --rm "$image" doctor
run --rm --read-only --tmpfs /tmp --network none "$image" restore nuthatch.jpg -o restored.png
[[ $(stat -c %u:%g "$folder/restored.png") == "$owner" ]]

# What only the build needs, and what it leaves. Triton needs gcc.
tools="$([[ $kind == cuda ]] || echo gcc) g++ nvcc ninja cmake make"
run --rm --user 0:0 --entrypoint sh "$image" -c "
    for tool in $tools; do ! command -v \$tool || exit 1; done
    for path in /source /opt/cuda /cache/* /root/.cache /var/lib/apt/lists/*Packages*; do ! ls -d \$path 2>/dev/null || exit 1; done"

# A photo that takes minutes.
run --rm --entrypoint python "$image" -c 'from PIL import Image; Image.effect_noise((3000, 3000), 99).save("large.png")'
run --detach "$image" restore large.png -o large_restored.png >/dev/null
sleep 20
end 130
[[ $(ls -A "$folder" | tr '\n' ' ') == "large.png nuthatch.jpg restored.png " ]]

run --detach -p 127.0.0.1::8000 "$image" serve --host 0.0.0.0 --batch-size 1 >/dev/null
url=http://$("$engine" port "$name" 8000)
curl --silent --fail --retry 60 --retry-delay 1 --retry-all-errors "$url/health"
curl --silent --fail --data-binary @examples/nuthatch.jpg "$url/restore" -o "$folder/served.png"
cmp "$folder/restored.png" "$folder/served.png"
end 0
echo "$image: built and tried"
