#!/usr/bin/env bash
# Installs what the tests and `make pacs` drive for real: Orthanc with its DICOMweb plugin, and Chromium.
# Nothing is started. Called by `make parts`; says what to do where it may not install.
set -euo pipefail

packages=()
{ command -v Orthanc || [ -x /usr/sbin/Orthanc ]; } >/dev/null || packages+=(orthanc)
[ -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so ] || packages+=(orthanc-dicomweb)
command -v chromium >/dev/null || packages+=(chromium fonts-dejavu-core)
if [ ${#packages[@]} = 0 ]; then
  echo "parts: Orthanc, its DICOMweb plugin and Chromium are installed"
  exit 0
fi

by_hand="apt-get install --no-install-recommends ${packages[*]}"
command -v apt-get >/dev/null || { echo "parts: expected apt-get (Debian, Ubuntu), there is none; install by hand: ${packages[*]}" >&2; exit 1; }
as_root=()
if [ "$(id -u)" != 0 ]; then
  sudo -n true 2>/dev/null || { echo "parts: expected to be root, or sudo without a password; run as root: $by_hand" >&2; exit 1; }
  as_root=(sudo -n)
fi

# Debian starts Orthanc as a service with its package, for everybody on this machine; RUNLEVEL=1 keeps it from
# starting, and where that is not looked at it is stopped again. A service that ran before is left alone.
ran_before=$(pgrep -x Orthanc >/dev/null && echo yes || echo no)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "parts: installing ${packages[*]}"
for command in "apt-get update" "apt-get install -y --no-install-recommends ${packages[*]}"; do
  # shellcheck disable=SC2086 # words on purpose
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 $command >"$log" 2>&1 || {
    tail -n 15 "$log" >&2
    echo "parts: that failed; run as root: $by_hand" >&2
    exit 1
  }
done
if [ "$ran_before" = no ] && [[ " ${packages[*]} " == *" orthanc "* ]] && pgrep -x Orthanc >/dev/null; then
  if command -v systemctl >/dev/null; then
    "${as_root[@]}" systemctl disable --now orthanc >/dev/null 2>&1 || true
  else
    "${as_root[@]}" invoke-rc.d orthanc stop >/dev/null 2>&1 || true
  fi
fi
echo "parts: installed"
