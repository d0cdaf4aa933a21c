//! Entries that SPIRE takes without a word and that can never match: `spire-server` takes them and warns.

use anyhow::{Result, ensure};
use harness::{Deployment, id};

#[test]
fn spire_server_warns_of_a_selector_and_a_parent_that_nothing_is_known_of() -> Result<()> {
    // The alias of a join token exists once the token was used.
    let Deployment {
        server,
        agent: _agent,
    } = Deployment::start()?;
    let create = |parent: &str, name: &str, selector: &str| {
        server.cli(&[
            "entry",
            "create",
            "-parentID",
            parent,
            "-spiffeID",
            &id(name),
            "-selector",
            selector,
        ])
    };
    for (parent, selector, warning) in [
        (
            Deployment::node(),
            "unxi:uid:1",
            Some("of the type \"unxi\""),
        ),
        (
            Deployment::node(),
            "unix:udi:1",
            Some("no selector \"udi\""),
        ),
        (
            id("/nodes"),
            "unix:uid:2",
            Some("neither an attested node nor an alias"),
        ),
        (Deployment::node(), "unix:uid:3", None),
    ] {
        let ran = create(
            &parent,
            &format!("/{}", selector.replace(':', "-")),
            selector,
        )?;
        ensure!(ran.succeeded(), "{ran:?}");
        match warning {
            Some(text) => ensure!(
                ran.stderr.starts_with("Warning: ") && ran.stderr.contains(text),
                "{ran:?}"
            ),
            None => ensure!(ran.stderr.is_empty(), "{ran:?}"),
        }
    }
    Ok(())
}
