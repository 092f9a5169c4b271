"""What is durable: one chain of manifests per partition, one chain of records per split, and segments of changed chunks.

Layout under the snapshot URL (`store`), every object written once and never changed::

    job/000000000001.json                      the job's own chain: name, plan, number of partitions, seed, generation, run
    g0001/p0003/chain/000000000017.json        manifest chain of partition 3 in generation 1 (`chain`, `manifest`)
    g0001/p0003/chain/000000000017.copy.json   its copy; every entry of every chain has one
    g0001/p0003/e000005-000012.arrows          a segment: concatenated Arrow IPC streams, one per table (`segment`)
    g0001/p0003/stage/e000005-000012-0-0.parquet   output that waits to be published (`sink`): sink 0, file 0
    splits/<name, quoted>/000000000002.json    split record chain: reader epoch, floors, end (`record`)
    cuts/000000000004.json                     saved cut: generation, one manifest version per partition, one position (`cut`)

A *chain* is an append-only sequence of small JSON entries whose next number is claimed by create-if-absent: that is the only
compare-and-swap there is. Raising an epoch and committing a manifest contend on the same chain (protocol S1). Retention deletes old
entries, so an entry that was created below a newer one (by an incarnation that slept through the deletion) does not count: `append`
looks again after it has created, and reports that it lost. An entry has a copy before anybody acts upon it, and the copy decides: of one
object that is damaged or lost, whichever it is, the job recovers exactly, or an error names it.

Loading (`restore`) uses the newest state whose bytes are what was written, under the newest manifest's epoch and hand-over marks;
`retention` says what may be deleted; `saved` reads all this with no job running.
"""
