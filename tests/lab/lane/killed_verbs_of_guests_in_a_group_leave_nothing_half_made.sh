# smctl is killed at every point while repositories are made and destroyed in a group of somebody else: after recovery all is
# as before or as after, nothing is left over, the metadata of the pool is whole, and what else is in the volume group is as
# it was.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

sweep guests
