//! The controller on a real kernel: `examples/lane.rs` in user-mode Linux, started by the project's own runner.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The runner and the example, or `None` with a word on stderr where the machine cannot run them.
fn tools(test: &str) -> Option<(PathBuf, PathBuf)> {
    let runner = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/lab/uml");
    let this = std::env::current_exe().expect("the path of this test");
    let target = this.ancestors().nth(3).expect("the target directory");
    let example = target.join("debug/examples/lane");
    for tool in ["linux.uml", "lvm", "thin_check", "thin_ls", "losetup", "wipefs"] {
        let found =
            ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].iter().any(|dir| Path::new(dir).join(tool).exists());
        if !found {
            assert!(std::env::var_os("THINORIGIN_REQUIRE").is_none_or(|it| it != "1"), "{test} needs {tool}");
            eprintln!("SKIPPED: {test}: needs {tool}");
            return None;
        }
    }
    // Cargo builds examples with all tests but not with one, and an old one must not pass for this.
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "thinorigin-sr", "--example", "lane", "--target-dir"])
        .arg(target)
        .status();
    assert!(built.is_ok_and(|status| status.success()), "the example is built");
    Some((runner, example))
}

#[test]
fn the_story_of_an_sr() {
    let Some((runner, example)) = tools("the_story_of_an_sr") else { return };
    let script = format!("exec {} \"$SCRATCH\"", example.display());
    let output = Command::new(runner)
        .args(["--timeout", "400", "--scratch", "2G", "--", "bash", "-c", &script])
        .output()
        .expect("the runner starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stdout.ends_with("told\n"), "{stdout}\n{stderr}");
}
