//! The `conuma` program: reads the surroundings, runs one command, turns its outcome into an exit code.

fn main() {
    let _cli = conuma::cli::command().get_matches();
}
