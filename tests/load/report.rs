//! Collects figures and prints medians and ratios.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use harness::Subject;
use serde_json::{Value, json};

/// Whether more or less is better; the ratio is Plastron's advantage over SPIRE either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
}

#[derive(Debug)]
struct Figure {
    unit: &'static str,
    better: Better,
    plastron: Vec<f64>,
    spire: Vec<f64>,
}

#[derive(Debug, Default)]
pub(crate) struct Report {
    figures: BTreeMap<String, Figure>,
    limits: Value,
}

impl Report {
    pub(crate) fn add(
        &mut self,
        subject: Subject,
        name: &str,
        unit: &'static str,
        better: Better,
        value: f64,
    ) {
        crate::say(&format!("    {name}: {value:.2} {unit}"));
        let figure = self.figures.entry(name.to_owned()).or_insert(Figure {
            unit,
            better,
            plastron: Vec::new(),
            spire: Vec::new(),
        });
        match subject {
            Subject::Plastron => figure.plastron.push(value),
            Subject::Spire => figure.spire.push(value),
        }
    }

    /// What one core of this machine can sign and verify.
    pub(crate) fn limits(&mut self) -> Result<()> {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)
            .map_err(|_unspecified| anyhow::anyhow!("no key"))?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, document.as_ref())?;
        let message = [7_u8; 600];
        let sign = || {
            key.sign(&random, &message)
                .map_err(|_unspecified| anyhow::anyhow!("no signature"))
        };
        let signature = sign()?;
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_key().as_ref());
        let signs = each_second(|| sign().is_ok());
        let verifies = each_second(|| public.verify(&message, signature.as_ref()).is_ok());
        self.limits = json!({ "p256_signatures_per_second": signs.round(), "p256_verifications_per_second": verifies.round() });
        Ok(())
    }

    pub(crate) fn print(&self) -> Result<()> {
        let figures: BTreeMap<&String, Value> = self
            .figures
            .iter()
            .map(|(name, figure)| (name, figure.value()))
            .collect();
        let whole = json!({ "one_core": self.limits, "figures": figures });
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string_pretty(&whole)?)?;
        Ok(())
    }
}

impl Figure {
    fn value(&self) -> Value {
        let (plastron, spire) = (median(&self.plastron), median(&self.spire));
        let ratio = plastron
            .zip(spire)
            .map(|(plastron, spire)| match self.better {
                Better::More => plastron / spire,
                Better::Less => spire / plastron,
            });
        json!({
            "unit": self.unit,
            "plastron": plastron.map(rounded),
            "spire": spire.map(rounded),
            "times_better": ratio.map(rounded),
            "runs": { "plastron": self.plastron, "spire": self.spire },
        })
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get((sorted.len() - 1) / 2)?;
    Some(f64::midpoint(lower, upper))
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn each_second(mut work: impl FnMut() -> bool) -> f64 {
    let from = Instant::now();
    let mut count = 0_u32;
    while from.elapsed() < Duration::from_millis(500) {
        if work() {
            count += 1;
        }
    }
    f64::from(count) / from.elapsed().as_secs_f64()
}
