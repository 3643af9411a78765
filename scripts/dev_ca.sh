#!/usr/bin/env bash
# A certificate authority and certificates for trying a cluster out. FOR DEVELOPMENT: the authority's key lies unencrypted
# beside the certificates, and whoever reads it can be any machine. In production use an authority of your own.
set -euo pipefail

usage() {
    cat <<'END'
usage: scripts/dev_ca.sh [--renew] [--days N] DIR NAME[:HOST,...]...

Makes, in DIR, a certificate authority (ca.pem, ca.key) and for each NAME a certificate NAME.pem and its key NAME.key,
for mutual TLS between machines of fcdcc. FOR DEVELOPMENT: ca.key lies there unencrypted.

  NAME      the certificate's common name: what access control knows its holder by
  HOST,...  names and addresses under which others connect to it [default: NAME,localhost,127.0.0.1,::1]
  --renew   make the certificates of these NAMEs anew; otherwise those that are there are kept
  --days N  how long they are valid, the authority as well where it is new [default: 365]

An authority that is there is kept and used. Machines need ca.pem and their own two files, never ca.key.

    scripts/dev_ca.sh certs master:master.lan,192.168.1.10 alpha beta operator
END
}

fail() {
    echo "error: $*" >&2
    exit 2
}

renew=false days=365
while (($#)); do
    case $1 in
        -h | --help) usage && exit 0 ;;
        --renew) renew=true ;;
        --days)
            [[ ${2-} =~ ^[1-9][0-9]{0,4}$ ]] || fail "--days ${2-}: give a number of days from 1 to 99999"
            days=$2
            shift
            ;;
        -*) fail "unknown option $1: see scripts/dev_ca.sh --help" ;;
        *) break ;;
    esac
    shift
done
(($# >= 2)) || fail "give a folder and at least one name: see scripts/dev_ca.sh --help"
command -v openssl >/dev/null || fail "openssl is not installed: install it, such as with apt-get install openssl"

dir=$1
shift
# All names first: nothing is written for a line with a mistake in it.
for entry in "$@"; do
    name=${entry%%:*}
    [[ $name =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$ ]] ||
        fail "name \"$name\": use 1 to 64 letters, digits, '-', '_' and '.', the first a letter or digit"
    [[ $name != ca ]] || fail "name \"ca\": that is the authority's, choose another"
    [[ $entry != *: ]] || fail "\"$entry\" ends with a colon: give hosts after it, or leave it out"
done

umask 077
mkdir -p "$dir" || fail "folder $dir cannot be made"
cd "$dir" || fail "folder $dir cannot be entered"
scratch=$(mktemp -d ./.dev_ca.XXXXXX) || fail "folder $dir cannot be written to"
trap 'rm -rf "$scratch"' EXIT

# openssl's own words only where it fails.
quietly() {
    openssl "$@" 2>"$scratch/log" || {
        cat "$scratch/log" >&2
        fail "openssl $1 failed, its message is above"
    }
}

new_key() {
    quietly genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"
}

# certificate FILE: made complete beside it, readable by all.
put_in_place() {
    chmod 644 "$scratch/$1"
    mv -f "$scratch/$1" "$1"
}

if [[ -e ca.pem && -e ca.key ]]; then
    echo "ca: kept"
elif [[ -e ca.pem || -e ca.key ]]; then
    fail "$dir has one of ca.pem and ca.key without the other: restore it, or remove what is left"
else
    new_key "$scratch/ca.key"
    cat >"$scratch/ca.cnf" <<'END'
[req]
distinguished_name = name
x509_extensions = authority
prompt = no
[name]
CN = fcdcc development authority
[authority]
basicConstraints = critical,CA:TRUE,pathlen:0
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
END
    quietly req -new -x509 -sha256 -days "$days" -config "$scratch/ca.cnf" -key "$scratch/ca.key" -out "$scratch/ca.pem"
    mv "$scratch/ca.key" ca.key
    put_in_place ca.pem
    echo "ca: made, for development only"
fi

for entry in "$@"; do
    name=${entry%%:*}
    if ! $renew && [[ -e $name.pem && -e $name.key ]]; then
        echo "$name: kept"
        continue
    fi
    hosts="$name,localhost,127.0.0.1,::1"
    [[ $entry != *:* ]] || hosts=${entry#*:}
    subject_names=()
    IFS=, read -ra parts <<<"$hosts"
    for host in "${parts[@]}"; do
        host=${host#[} host=${host%]}
        if [[ $host =~ ^[0-9]+(\.[0-9]+){3}$ || $host == *:* ]]; then
            subject_names+=("IP:$host")
        elif [[ $host =~ ^[A-Za-z0-9._-]+$ ]]; then
            subject_names+=("DNS:$host")
        else
            fail "\"$entry\": \"$host\" is neither a host name nor an address"
        fi
    done
    new_key "$scratch/$name.key"
    # The name is in no file that openssl reads as configuration but here, where it is checked above.
    cat >"$scratch/leaf.cnf" <<END
[req]
distinguished_name = name
prompt = no
[name]
CN = $name
[leaf]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth,clientAuth
subjectAltName = $(IFS=, && echo "${subject_names[*]}")
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
END
    quietly req -new -sha256 -config "$scratch/leaf.cnf" -key "$scratch/$name.key" -out "$scratch/leaf.csr"
    quietly x509 -req -sha256 -days "$days" -in "$scratch/leaf.csr" -CA ca.pem -CAkey ca.key \
        -set_serial "0x$(openssl rand -hex 16)" -extfile "$scratch/leaf.cnf" -extensions leaf -out "$scratch/$name.pem"
    # The key first: a certificate without its key is made again, a key without its certificate too.
    rm -f "$name.pem"
    mv -f "$scratch/$name.key" "$name.key"
    put_in_place "$name.pem"
    echo "$name: made for ${hosts//,/, }"
done
