//! Finding the project's other programs.

use std::path::PathBuf;

use crate::error::{LabError, Result, failed};

/// Finds a program of this project: this one itself, one beside it, or one folder up (where a test's program is built below
/// the others).
///
/// # Errors
/// [`LabError::Spec`] if it is in none of these places.
pub fn find_beside(program: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(failed("finding this program's path"))?;
    let places = own.ancestors().skip(1).take(2).map(|dir| dir.join(program));
    places.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        LabError::Spec(format!("the program `{program}` is not beside {}; build the workspace's programs first", own.display()))
    })
}
