use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};

use super::*;

/// A user that this process is not.
const STRANGER: u32 = 4_242;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn make(path: &Path, mode: u32) {
    std::fs::create_dir(path).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn creates_missing_directories_with_their_mode() {
    let base = directory();
    let path = base.path().join("a/b");
    let opened = TrustedDir::open_or_create(&path, 0o755).unwrap();
    assert_eq!(opened.path(), std::fs::canonicalize(&path).unwrap());
    assert_eq!(mode(&path), 0o755);
    assert_eq!(mode(&base.path().join("a")), 0o755);
    assert!(!opened.is_private());
    assert!(opened.shared_volume().is_none());
}

#[test]
fn directories_that_are_created_above_a_private_one_are_open_to_those_who_pass_through() {
    let base = directory();
    for mode_below in [0o750, 0o700] {
        let path = base.path().join(format!("{mode_below:o}/run/private"));
        TrustedDir::open_or_create(&path, mode_below).unwrap();
        assert_eq!(mode(&path), mode_below);
        let above = path.parent().unwrap();
        assert_eq!(mode(above), 0o755);
        assert_eq!(mode(above.parent().unwrap()), 0o755);
    }
}

#[test]
fn the_mode_of_a_directory_that_is_there_is_left_alone() {
    let base = directory();
    let above = base.path().join("above");
    make(&above, 0o700);
    TrustedDir::open_or_create(&above.join("run/private"), 0o750).unwrap();
    assert_eq!(mode(&above), 0o700);
}

#[test]
fn knows_a_private_directory() {
    let base = directory();
    let private = TrustedDir::open_or_create(&base.path().join("p"), 0o700).unwrap();
    assert!(private.is_private());
}

#[test]
fn a_missing_directory_is_not_created_unless_asked() {
    let base = directory();
    let missing = TrustedDir::open(&base.path().join("missing"));
    assert!(matches!(missing, Err(Untrusted::Io { .. })));
    assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0);
}

#[test]
fn refuses_a_directory_that_others_can_write() {
    let base = directory();
    let open = base.path().join("open");
    make(&open, 0o777);
    for path in [open.clone(), open.join("below")] {
        let refused = TrustedDir::open_or_create(&path, 0o755);
        assert!(
            matches!(&refused, Err(Untrusted::Writable { path, mode: 0o777 }) if *path == open),
            "{refused:?}"
        );
    }
    assert!(!open.join("below").exists());
}

#[test]
fn accepts_a_sticky_directory_and_what_is_its_own_in_it() {
    let base = directory();
    let sticky = base.path().join("tmp");
    make(&sticky, 0o1777);
    TrustedDir::open(&sticky).unwrap();
    TrustedDir::open_or_create(&sticky.join("own"), 0o700).unwrap();
}

#[test]
fn refuses_what_another_user_made_in_a_sticky_directory() {
    if !is_root() {
        return;
    }
    let base = directory();
    let sticky = base.path().join("tmp");
    make(&sticky, 0o1777);
    let foreign = sticky.join("spire-agent");
    make(&foreign, 0o755);
    chown(&foreign, Some(STRANGER), Some(STRANGER)).unwrap();
    for path in [foreign.clone(), foreign.join("public")] {
        let refused = TrustedDir::open_or_create(&path, 0o755);
        assert!(
            matches!(
                &refused,
                Err(Untrusted::ForeignOwner {
                    owner: STRANGER,
                    ..
                })
            ),
            "{refused:?}"
        );
    }
    assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 0);
}

#[test]
fn refuses_an_own_directory_below_another_users() {
    if !is_root() {
        return;
    }
    let base = directory();
    let foreign = base.path().join("home");
    make(&foreign, 0o755);
    make(&foreign.join("own"), 0o755);
    chown(&foreign, Some(STRANGER), Some(STRANGER)).unwrap();
    assert!(matches!(
        TrustedDir::open(&foreign.join("own")),
        Err(Untrusted::ForeignOwner { .. })
    ));
}

#[test]
fn refuses_a_group_that_may_write_unless_it_is_a_trusted_one() {
    let base = directory();
    let shared = base.path().join("shared");
    make(&shared, 0o775);
    TrustedDir::open(&shared).unwrap();
    if is_root() {
        chown(&shared, None, Some(STRANGER)).unwrap();
        assert!(matches!(
            TrustedDir::open(&shared),
            Err(Untrusted::Writable { mode: 0o775, .. })
        ));
    }
}

#[test]
fn follows_links_of_root_and_of_this_user() {
    let base = directory();
    let real = base.path().join("run");
    make(&real, 0o755);
    let absolute = base.path().join("absolute");
    symlink(&real, &absolute).unwrap();
    let relative = base.path().join("relative");
    symlink("../run/../run", real.join("up")).unwrap();
    symlink("run", &relative).unwrap();
    let resolved = std::fs::canonicalize(&real).unwrap();
    for link in [absolute, relative, real.join("up"), real.join("../run")] {
        assert_eq!(
            TrustedDir::open(&link).unwrap().path(),
            resolved,
            "{link:?}"
        );
    }
    // Root's own link, where the system has it.
    if std::fs::symlink_metadata("/var/run").is_ok_and(|link| link.is_symlink()) {
        assert_eq!(
            TrustedDir::open(Path::new("/var/run")).unwrap().path(),
            std::fs::canonicalize("/var/run").unwrap()
        );
    }
}

#[test]
fn refuses_a_link_that_another_user_made() {
    if !is_root() {
        return;
    }
    let base = directory();
    let sticky = base.path().join("tmp");
    make(&sticky, 0o1777);
    make(&base.path().join("target"), 0o755);
    let link = sticky.join("spire-agent");
    symlink(base.path().join("target"), &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(STRANGER), Some(STRANGER)).unwrap();
    assert!(matches!(
        TrustedDir::open_or_create(&link.join("public"), 0o755),
        Err(Untrusted::ForeignOwner {
            owner: STRANGER,
            ..
        })
    ));
    assert!(!base.path().join("target/public").exists());
}

#[test]
fn refuses_links_in_a_circle_and_what_is_no_directory() {
    let base = directory();
    symlink("b", base.path().join("a")).unwrap();
    symlink("a", base.path().join("b")).unwrap();
    assert!(matches!(
        TrustedDir::open(&base.path().join("a")),
        Err(Untrusted::TooManyLinks(_))
    ));
    let file = base.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        assert!(matches!(
            TrustedDir::open_or_create(&path, 0o755),
            Err(Untrusted::NotDirectory(_))
        ));
    }
}

#[test]
fn a_directory_keeps_the_mode_it_has() {
    let base = directory();
    let path = base.path().join("kept");
    make(&path, 0o711);
    TrustedDir::open_or_create(&path, 0o755).unwrap();
    assert_eq!(mode(&path), 0o711);
    assert_eq!(
        std::fs::metadata(&path).unwrap().uid(),
        nix::unistd::geteuid().as_raw()
    );
}

#[test]
fn a_mounted_volume_that_everybody_can_write_is_accepted_and_named() {
    // Only the mount's number is looked at: `/proc` is a mount on every system.
    let walk = |parent: Option<u64>, own: Option<u64>| {
        let mut walk = Walk::new(None);
        walk.start().unwrap();
        walk.stack[0].mount = parent;
        walk.is_mounted_here(own)
    };
    assert!(walk(Some(1), Some(2)));
    assert!(!walk(Some(1), Some(1)));
    assert!(!walk(Some(1), None));
    let proc = open("/proc", directory_flags(), Mode::empty()).unwrap();
    let root = open("/", directory_flags(), Mode::empty()).unwrap();
    assert_ne!(mount_of(&proc).unwrap(), mount_of(&root).unwrap());
}
