# smctl is killed at every point while pools grow and lost records are restored: after recovery, or the same again, all is as before or
# as after, nothing is left over, the metadata of the pool is whole, and what else is in the volume group is as it was.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

sweep pools
