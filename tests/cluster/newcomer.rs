//! Ordinary programs, unchanged, on three mounts.

use crate::common::Cluster;
use crate::common::process::{Finished, shell};
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);

/// What someone tries in the first ten minutes. Each script runs on one mount; what it left is compared on all three.
#[test]
fn ordinary_programs_work_and_all_mounts_show_the_same() {
    let cluster = Cluster::start(5, [1, 2, 3]);
    run(&cluster, "files and directories", FILES);
    run(&cluster, "archives", ARCHIVES);
    run(&cluster, "64 MiB through dd", BIG_FILE);
    run(&cluster, "a git repository", GIT);
    run(&cluster, "a sqlite database", SQLITE);
    run(&cluster, "remove what was made", REMOVE);
    cluster.expect_agreement();
}

fn run(cluster: &Cluster, what: &str, script: &str) -> Finished {
    println!("{what}");
    let variables: [(&str, &Path); 5] = [
        ("A", cluster.at(1)),
        ("B", cluster.at(2)),
        ("C", cluster.at(3)),
        ("OUTSIDE", &cluster.outside("")),
        ("SOURCE", Path::new(env!("CARGO_MANIFEST_DIR"))),
    ];
    let done = shell(script, &variables, LIMIT).expect_success();
    let compare = "diff -r --no-dereference $A $B && diff -r --no-dereference $A $C";
    shell(compare, &variables, LIMIT).expect_success();
    done
}

const FILES: &str = r#"
    cd $A
    mkdir -p d/e/f
    echo hello > d/greeting
    test "$(cat $B/d/greeting)" = hello
    echo again >> $B/d/greeting
    test "$(cat $C/d/greeting)" = "hello
again"
    cp -a $SOURCE/src src
    diff -r $SOURCE/src $B/src
    test "$(stat -c '%a %Y' $SOURCE/src/lib.rs)" = "$(stat -c '%a %Y' $C/src/lib.rs)"
    mv src moved
    test ! -e $B/src
    diff -r $SOURCE/src $C/moved
    ln d/greeting d/hard
    test "$(stat -c %h $B/d/greeting)" = 2
    test d/greeting -ef d/hard
    ln -s greeting d/soft
    test "$(readlink $C/d/soft)" = greeting
    cmp $B/d/soft $B/d/hard
    mkdir tree && touch tree/1 tree/2 tree/3 && mkdir tree/4
    test "$(find $B/tree | wc -l)" = 5
    test "$(cd $B && find tree -type f | sort | tr '\n' ' ')" = "tree/1 tree/2 tree/3 "
    rm -r $C/tree
    test ! -e $A/tree
    chmod 640 d/greeting
    test "$(stat -c %a $B/d/hard)" = 640
    truncate -s 1000000 d/sparse
    test "$(stat -c %s $C/d/sparse)" = 1000000
    if rmdir d; then exit 1; fi
    if mkdir d; then exit 1; fi
    seq 1 300 | (cd d/e && xargs touch)
    test "$(ls $B/d/e | wc -l)" = 301
"#;

const ARCHIVES: &str = r#"
    cd $A
    tar -C moved -cf all.tar .
    mkdir out
    tar -C $B/out -xf $B/all.tar
    diff -r $SOURCE/src $C/out
    cp -a --preserve=all $C/out copy
    diff -r out copy
"#;

const BIG_FILE: &str = r#"
    dd if=/dev/urandom of=$OUTSIDE/random bs=1M count=64 status=none
    dd if=$OUTSIDE/random of=$A/random bs=1M status=none conv=fsync
    cmp $OUTSIDE/random $B/random
    cmp $OUTSIDE/random $C/random
    dd if=$OUTSIDE/random of=$B/random bs=4k seek=5 skip=700 count=3 conv=notrunc status=none
    dd if=$OUTSIDE/random of=$OUTSIDE/expected bs=1M status=none
    dd if=$OUTSIDE/random of=$OUTSIDE/expected bs=4k seek=5 skip=700 count=3 conv=notrunc status=none
    cmp $OUTSIDE/expected $C/random
    rm $A/random
"#;

const GIT: &str = r#"
    export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
    git init -q $OUTSIDE/origin
    cp -r $SOURCE/src $OUTSIDE/origin/
    git -C $OUTSIDE/origin add -A
    git -C $OUTSIDE/origin commit -qm first
    git clone -q $OUTSIDE/origin $A/clone
    git -C $B/clone fsck --full --strict
    echo changed >> $B/clone/src/lib.rs
    git -C $B/clone commit -qam second
    git -C $C/clone fsck --full --strict
    test "$(git -C $C/clone log --oneline | wc -l)" = 2
    test -z "$(git -C $C/clone status --porcelain)"
    git -C $A/clone gc -q
    git -C $B/clone fsck --full --strict
"#;

const SQLITE: &str = r#"
    sqlite3 $A/db 'create table t (n integer primary key, text text)'
    for n in $(seq 1 200); do echo "begin; insert into t values ($n, hex(randomblob(50))); commit;"; done |
        sqlite3 -bail $A/db
    test "$(sqlite3 $B/db 'pragma integrity_check')" = ok
    test "$(sqlite3 $C/db 'select count(*), sum(n) from t')" = "200|20100"
    sqlite3 $B/db 'delete from t where n > 100'
    test "$(sqlite3 $A/db 'select count(*) from t')" = 100
"#;

const REMOVE: &str = r#"
    rm -rf $A/d $B/moved $C/out $A/copy $A/all.tar $B/clone $C/db
    test -z "$(ls -A $A)"
"#;
