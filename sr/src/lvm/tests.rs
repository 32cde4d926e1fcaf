//! Reports as LVM 2.03 prints them.

use super::report::parse;
use super::*;

#[test]
fn a_full_report() {
    let text = br#"{"report":[
      {"vg":[{"vg_name":"vg","vg_size":"834666496","vg_free":"645922816","vg_extent_size":"4194304","vg_tags":"smctl,x=1","vg_attr":"wz--n-"}],
       "pv":[{"pv_name":"/dev/loop0","pv_size":"834666496","vg_name":"vg"}],
       "lv":[{"lv_name":"meta"},{"lv_name":"pool"}],
       "pvseg":[{"pvseg_start":"0"}],
       "seg":[
        {"lv_name":"meta","lv_size":"67108864","segtype":"linear","lv_tags":"","lv_active":"","pool_lv":"","transaction_id":"","chunk_size":"0","lv_metadata_size":""},
        {"lv_name":"meta","lv_size":"67108864","segtype":"linear","lv_tags":"","lv_active":"","pool_lv":"","transaction_id":"","chunk_size":"0","lv_metadata_size":""},
        {"lv_name":"pool","lv_size":"104857600","segtype":"thin-pool","lv_tags":"smctl","lv_active":"active","pool_lv":"","transaction_id":"0","chunk_size":"65536","lv_metadata_size":"8388608"}]},
      {"pv":[{"pv_name":"/dev/loop1","pv_size":"838860800","vg_name":""}],"pvseg":[{"pvseg_start":"0"}]}]}"#;
    let found = parse(text).unwrap();
    assert_eq!(found.free, [PathBuf::from("/dev/loop1")]);
    let [vg] = found.groups.as_slice() else { panic!("{found:?}") };
    assert_eq!((vg.size, vg.free, vg.extent), (834_666_496, 645_922_816, 4 << 20));
    assert_eq!(vg.tags, ["smctl", "x=1"]);
    assert_eq!(vg.devices(), [PathBuf::from("/dev/loop0")]);
    assert!(!vg.shared);
    assert_eq!(vg.lvs.len(), 2, "a volume of two segments is one volume");
    let pool = vg.lv("pool").unwrap();
    assert_eq!((pool.kind.as_str(), pool.active, pool.chunk), ("thin-pool", true, 65536));
    assert!(!vg.lv("meta").unwrap().active);
}

#[test]
fn nothing_and_nonsense() {
    assert_eq!(parse(br#"{"report":[]}"#).unwrap(), Found::default());
    assert!(parse(b"").is_err());
    assert!(parse(br#"{"report":[{"vg":[{"vg_name":"v","vg_size":"x","vg_free":"","vg_extent_size":"","vg_tags":"","vg_attr":""}]}]}"#).is_err());
}
