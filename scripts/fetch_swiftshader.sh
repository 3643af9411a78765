#!/usr/bin/env bash
# Fetches SwiftShader, a Vulkan implementation on the CPU that shares no code with Mesa, and prints the path of its driver file
# for VK_DRIVER_FILES. On failure it prints nothing and says why in one line on stderr.
#
#   VK_DRIVER_FILES="$(scripts/fetch_swiftshader.sh)" cargo test --test gpu
#
# Two files of Debian's package chromium-common are kept, 5 MB, in ${XDG_CACHE_HOME:-~/.cache}/fcdcc-swiftshader; nothing is
# installed. Files that are there already are used as they are: remove the folder to fetch a newer version.
set -euo pipefail

package=chromium-common
library=libvk_swiftshader.so
driver=vk_swiftshader_icd.json
folder="${XDG_CACHE_HOME:-$HOME/.cache}/fcdcc-swiftshader"
attempts=4
pause_s=5

give_up() {
    echo "SwiftShader is not available: $*" >&2
    exit 1
}

# Fails if any list could not be fetched.
update_lists() {
    local sudo=()
    ((EUID == 0)) || sudo=(sudo -n)
    "${sudo[@]}" apt-get update -q -o APT::Update::Error-Mode=any >&2
}

# Several attempts, because networks have hiccups. Lists are updated in between: a mirror keeps the newest version alone.
download() {
    local attempt updated=false
    for ((attempt = 1; attempt <= attempts; attempt++)); do
        if apt-cache show "$package" >/dev/null 2>&1; then
            # apt checks the package against the signed lists. The user _apt cannot write to a folder of mktemp.
            (cd "$1" && apt-get download -q -o APT::Sandbox::User=root "$package" >&2) && return
        elif $updated; then
            give_up "this distribution has no package $package"
        fi
        ((attempt == 1)) || sleep "$pause_s"
        update_lists && updated=true
    done
    give_up "$package cannot be downloaded ($attempts attempts)"
}

if [[ ! -e "$folder/$driver" ]]; then
    command -v apt-get >/dev/null || give_up "it comes from Debian's package $package, and there is no apt-get"
    mkdir -p "$folder"
    # Below the folder, so that files can be renamed into place: other processes see whole files only.
    scratch="$(mktemp -d "$folder/fetch.XXXXXX")"
    trap 'rm -rf "$scratch"' EXIT
    download "$scratch"
    dpkg-deb --fsys-tarfile "$scratch"/*.deb | tar -x -C "$scratch" --wildcards "*/$library" "*/$driver" ||
        give_up "$package does not contain $library and $driver"
    # The loader resolves this path relative to the driver file.
    grep -q "\"library_path\": *\"\./$library\"" "$scratch"/usr/lib/*/"$driver" ||
        give_up "$driver of $package does not name ./$library beside it"
    chmod 644 "$scratch"/usr/lib/*/*
    mv "$scratch"/usr/lib/*/"$library" "$folder/"
    mv "$scratch"/usr/lib/*/"$driver" "$folder/"
fi
printf '%s\n' "$folder/$driver"
