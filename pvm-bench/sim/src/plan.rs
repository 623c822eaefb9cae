//! Plans: a scenario file with its variations.
//!
//! `[[variants]]` compare policies: each has a `name` and under `set` what it changes, by path (`"policy.params.rotation" = true`; a number
//! is a place in a list). `[[sweep]]` repeats everything for each of its `values` at a `path`. The first variant is the one whose
//! means the results show on top.

use std::path::Path;

use serde::Deserialize;

use crate::spec::Scenario;
use crate::{Result, SimError, bad};

/// Most combinations of variants, sweeps and seeds.
const MAX_RUNS: usize = 100_000;

/// One scenario to run, one time.
#[derive(Debug, Clone)]
pub struct PlannedRun {
    /// Which variant, by its place.
    pub variant: usize,
    /// Its name.
    pub variant_name: String,
    /// Where in the sweep: the values, as text. Empty without a sweep.
    pub point: String,
    /// Its seed.
    pub seed: u64,
    /// What to run.
    pub scenario: std::sync::Arc<Scenario>,
}

/// A scenario file.
#[derive(Debug)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// What it shows.
    pub about: String,
    /// All runs: variant by variant, point by point, seed by seed.
    pub runs: Vec<PlannedRun>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    name: String,
    #[serde(default)]
    set: toml::Table,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sweep {
    path: String,
    values: Vec<toml::Value>,
}

impl Plan {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, is no valid scenario, or has values out of bounds.
    pub fn load(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| SimError::Io { path: shown.clone(), source })?;
        Self::parse(&shown, &text)
    }

    /// Reads a text; `source` names it in errors.
    ///
    /// # Errors
    /// It is no valid scenario, or has values out of bounds.
    pub fn parse(source: &str, text: &str) -> Result<Self> {
        let syntax = |why: String| SimError::Syntax { path: source.to_owned(), why };
        let mut table: toml::Table = text.parse().map_err(|e: toml::de::Error| syntax(e.to_string()))?;
        let variants: Vec<Variant> = take(&mut table, "variants").map_err(&syntax)?;
        let sweeps: Vec<Sweep> = take(&mut table, "sweep").map_err(&syntax)?;
        let variants = if variants.is_empty() { vec![Variant { name: "base".to_owned(), set: toml::Table::new() }] } else { variants };
        let base = toml::Value::Table(table);
        let points = points(&sweeps)?;

        let mut runs = Vec::new();
        let (mut name, mut about) = (String::new(), String::new());
        for (at, variant) in variants.iter().enumerate() {
            for point in &points {
                let mut value = base.clone();
                for (path, new) in variant.set.iter().map(|(p, v)| (p.as_str(), v)).chain(point.iter().map(|(p, v)| (*p, *v))) {
                    set(&mut value, path, new.clone())?;
                }
                let scenario: Scenario = value.try_into().map_err(|e: toml::de::Error| syntax(e.to_string()))?;
                scenario.validate()?;
                let shown: Vec<String> = point.iter().map(|(_, v)| v.to_string()).collect();
                name.clone_from(&scenario.name);
                about.clone_from(&scenario.about);
                let scenario = std::sync::Arc::new(scenario);
                for i in 0..u64::from(scenario.runs) {
                    let (variant_name, scenario) = (variant.name.clone(), scenario.clone());
                    let seed = scenario.seed.wrapping_add(i);
                    runs.push(PlannedRun { variant: at, variant_name, point: shown.join(" "), seed, scenario });
                }
                if runs.len() > MAX_RUNS {
                    return Err(bad("variants, sweep and runs", format!("must be at most {MAX_RUNS} runs together")));
                }
            }
        }
        Ok(Self { name, about, runs })
    }
}

fn take<T: serde::de::DeserializeOwned>(table: &mut toml::Table, key: &str) -> std::result::Result<Vec<T>, String> {
    match table.remove(key) {
        None => Ok(Vec::new()),
        Some(value) => value.try_into().map_err(|e: toml::de::Error| format!("{key}: {e}")),
    }
}

/// All combinations of the sweeps' values.
fn points(sweeps: &[Sweep]) -> Result<Vec<Vec<(&str, &toml::Value)>>> {
    let mut points = vec![Vec::new()];
    for sweep in sweeps {
        let longer = |point: &Vec<_>| {
            let values = sweep.values.iter().map(|v| {
                let mut point: Vec<(&str, &toml::Value)> = point.clone();
                point.push((sweep.path.as_str(), v));
                point
            });
            values.collect::<Vec<_>>()
        };
        points = points.iter().flat_map(longer).collect();
        if points.is_empty() || points.len() > MAX_RUNS {
            return Err(bad("sweep", format!("must have from 1 to {MAX_RUNS} combinations")));
        }
    }
    Ok(points)
}

/// Sets what a path of names and places (`jobs.0.count`) leads to. The last name may be new.
fn set(value: &mut toml::Value, path: &str, new: toml::Value) -> Result<()> {
    let (mut at, mut parts) = (value, path.split('.').peekable());
    while let Some(part) = parts.next() {
        let is_last = parts.peek().is_none();
        at = match at {
            toml::Value::Table(table) if is_last => {
                table.insert(part.to_owned(), new);
                return Ok(());
            }
            toml::Value::Table(table) => table.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new())),
            toml::Value::Array(items) => {
                let place = part.parse::<usize>().ok().and_then(|i| items.get_mut(i));
                place.ok_or_else(|| bad(path, format!("`{part}` is no place in that list")))?
            }
            _ => return Err(bad(path, format!("`{part}` leads nowhere"))),
        };
        if is_last {
            *at = new;
            return Ok(());
        }
    }
    Err(bad(path, "is empty"))
}
