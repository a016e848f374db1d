//! The demonstration: finds and mends what it breaks, and can be kept.

use crate::program::{INVENTORY, Lab};

#[test]
fn all_four_faults_are_found_and_mended_and_the_lab_can_be_kept() {
    let lab = Lab::new(INVENTORY, "");
    let said = lab.run(&["demo", "--keep", "kept"]);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(said.out.contains("4 of 4 faults were found and named, and everything is mended"), "{}", said.out);
    assert!(said.out.contains("(0 requests were made for that)"), "{}", said.out);
    let status = lab.run(&["status", "--inventory", "kept/lab/inventory.toml"]);
    assert_eq!(status.code, 0, "{}{}", status.out, status.err);
    let again = lab.run(&["demo", "--keep", "kept"]);
    assert_eq!(again.code, 2, "a lab that was kept is not overwritten");
}
