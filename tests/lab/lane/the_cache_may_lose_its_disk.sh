# The disk under the cache is full, read-only, or fails: readers get the right bytes all the same, and the log says so once.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"
# shellcheck source-path=SCRIPTDIR source=cachedisk
. "$(dirname "$0")/cachedisk"

serve() { # [FREE]: with an empty cache, and FREE MiB for it where that is said
  local available
  mount /dev/mapper/cachedisk cache
  rm -rf cache/store cache/filler
  if (( $# )); then
    available=$(df --output=avail -BM cache | tail -n 1)
    fallocate -l "$(( ${available//[!0-9]/} - $1 ))M" cache/filler
  fi
  start_server
}

# Full: there is room for a part.
serve 8
read_all "the disk is full"
same "warnings" 1 "$(warnings)"
end

# Read-only from one moment to the next, as ext4 does after an error.
serve
nbdcopy "nbd+unix:///qcow2?socket=$work/nbd.sock" copy
mount -o remount,abort cache
read_all "the disk is read-only"
same "warnings" 1 "$(warnings)"
end

# Gone: every access is an error, that of what was cached as well.
serve
read_all "all is well"
same "warnings" 0 "$(warnings)"
sync cache/store/lock
becomes error
echo 3 >/proc/sys/vm/drop_caches
read_all "the disk is gone"
(( $(warnings) >= 1 ))
stop serve.pid
umount cache || umount -l cache

# Back again, in whatever state: nothing wrong is served from it.
mend
mount /dev/mapper/cachedisk cache
start_server
read_all "the disk is back"
end
remove_disk
