//! Storage repositories (SRs) and virtual disks (VDIs) on LVM and dm-thin.
