//! The generated code and the descriptor set in `src/gen` are what the files under `proto/` say.
//!
//! `PLASTRON_REGENERATE=1 cargo test -p plastron-proto --test regenerate` regenerates them.

#![expect(clippy::unwrap_used, reason = "a test: whatever fails, it fails here")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use prost::Message as _;

type Files = BTreeMap<String, Vec<u8>>;

fn sources(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for item in fs::read_dir(directory).unwrap() {
            let path = item.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path
                .extension()
                .is_some_and(|extension| extension == "proto")
            {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn generated(root: &Path) -> Files {
    let mut compiler = protox::Compiler::new([root]).unwrap();
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(sources(root)).unwrap();
    let described = compiler.file_descriptor_set();

    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .build_transport(false)
        .btree_map(".")
        .extern_path(".google.rpc", "::tonic_types")
        .out_dir(out.path())
        .compile_fds(described.clone())
        .unwrap();

    let mut files = files_in(out.path());
    files.retain(|_, text| !text.is_empty());
    let mut bare = described;
    for file in &mut bare.file {
        file.source_code_info = None;
    }
    files.insert("descriptors.bin".to_owned(), bare.encode_to_vec());
    files
}

fn files_in(directory: &Path) -> Files {
    let read = |path: PathBuf| {
        (
            path.file_name().unwrap().to_str().unwrap().to_owned(),
            fs::read(&path).unwrap(),
        )
    };
    fs::read_dir(directory)
        .unwrap()
        .map(|item| read(item.unwrap().path()))
        .collect()
}

#[test]
fn generated_code_is_what_the_proto_files_say() {
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed_root = crate_root.join("src/gen");
    let fresh = generated(&crate_root.join("../../proto"));
    let committed = files_in(&committed_root);
    if std::env::var_os("PLASTRON_REGENERATE").is_some() {
        for name in committed.keys().filter(|name| !fresh.contains_key(*name)) {
            fs::remove_file(committed_root.join(name)).unwrap();
        }
        for (name, text) in &fresh {
            fs::write(committed_root.join(name), text).unwrap();
        }
        return;
    }
    assert!(
        fresh.keys().eq(committed.keys()),
        "the list of files in src/gen differs"
    );
    for (name, text) in &fresh {
        assert!(
            committed.get(name) == Some(text),
            "src/gen/{name} is not what proto/ generates"
        );
    }
}
