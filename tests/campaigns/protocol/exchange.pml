/* How data move between the meetings: NodeMemory::exchange and NodeMemory::broadcast (csrc/core/ranks/node_memory.cpp),
 * small data (NodeGroup::exchange, node_group.cpp), as NodeCommunicator::allreduce and broadcast use them.
 *
 * N ranks make CALLS calls, the same on all of them, each drawn: a small allreduce, whose data are in the slots; one of
 * PIECES pieces through the staging buffers; one where the data lie, in memory that all have mapped, or through the
 * staging buffers after all because a rank's data lie elsewhere; a broadcast of three pieces through two halves of the
 * root's buffer. At most one rank fails in its work and breaks the group up, and with TIMEOUT any wait may end.
 *
 * Shown: no word is read or written while another rank writes it, nor written while another reads it; who ends a call
 * has in all places the sum of all ranks' data, or the root's data, whatever happened to other ranks meanwhile, and
 * whatever ranks that have raised then do with their own data; without
 * TIMEOUT nobody waits for ever.
 *
 * Assumed:
 * - Meetings do what meeting.pml shows: who passes finds all there, or raises if one has broken the group up. A meeting
 *   is an arrival and a wait here. So the memory's order is that of meetings: what a rank writes to data before it
 *   arrives is read by others after they have seen it arrive (a store that releases, a load that acquires), which is
 *   all that is needed, because of this model's first property: there are no other conflicts.
 * - An access to a word is two steps, so that others can be seen in its middle. A slice of the data is one word: a
 *   rank's work is on its own slice of all ranks' data (slice_of has no overlaps).
 * - The sum is by bits: rank r's data have bit r, in the high bits the call and the piece. So that of all ranks is known.
 */
#ifndef N
#define N 2
#endif
#ifndef CALLS
#define CALLS 2
#endif
#ifndef PIECES
#define PIECES 2
#endif

#ifdef TIMEOUT
#define patience_ends true
#else
#define patience_ends false
#endif

#ifdef BUG_ONE_COPY_OF_A_SLOT
#define parity 0
#define TWO_COPIES 0
#else
#define parity (epoch % 2)
#define TWO_COPIES 1
#endif

#define kSmall 0
#define kStaged 1
#define kInPlace 2
#define kMixed 3 /* the last rank's data lie elsewhere */
#define kBroadcast 4

/* Words of memory, with who is in the middle of an access. */
#define STAGING(r, half, slice) (((r) * 2 + (half)) * N + (slice))
#define SHARED(r, slice) (2 * N * N + (r) * N + (slice))
#define SMALL(r, copy) (3 * N * N + (r) * 2 + (copy))
#define NUMBER(r, copy) (3 * N * N + 2 * N + (r) * 2 + (copy))
#define WORDS (3 * N * N + 4 * N)
byte word[WORDS];
byte readers[WORDS];
bool written[WORDS];

byte arrived[N];
bool broken[N];
byte call[CALLS]; /* what all ranks call, drawn */
bool failed;      /* a rank has */
byte drawn;
byte place[2 * N]; /* in the slots: whether a rank's data are in memory that all have mapped */

#define kAll ((1 << N) - 1)
/* The data of call c, piece p, of all ranks in `who`, in a byte. */
#define value_of(c, p, who) ((((c) * 3 + (p) + 1) << N) | (who))

inline load(i) {
  atomic { assert(!written[i]); readers[i]++ };
  atomic { assert(!written[i]); got = word[i]; readers[i]-- }
}

inline store(i, x) {
  atomic { assert(!written[i] && readers[i] == 0); written[i] = true };
  atomic { assert(readers[i] == 0); word[i] = x; written[i] = false }
}

#if N == 2
#define any_broken (broken[0] || broken[1])
#define all_arrived (arrived[0] >= epoch && arrived[1] >= epoch)
#define all_in_place (place[parity] == 1 && place[2 + parity] == 1)
#else
#define any_broken (broken[0] || broken[1] || broken[2])
#define all_arrived (arrived[0] >= epoch && arrived[1] >= epoch && arrived[2] >= epoch)
#define all_in_place (place[parity] == 1 && place[2 + parity] == 1 && place[4 + parity] == 1)
#endif

/* Epochs do not wrap around here; see meeting.pml. */
inline meet(number) {
  epoch++;
  store(NUMBER(me, parity), number);
  arrived[me] = epoch;
  if
  :: atomic {
      all_arrived ->
      if
#ifndef BUG_BROKEN_ONLY_SEEN_ASLEEP
      :: any_broken -> goto raise
#endif
      :: else
      fi
    }
#ifndef BUG_SLEEPERS_DO_NOT_LOOK_AT_OTHERS
  :: any_broken && !all_arrived -> goto raise
#endif
  :: patience_ends && !all_arrived -> goto raise
  fi
}

/* A rank fails in the middle of its work. */
inline may_fail() {
  if
  :: true
  :: atomic { !failed -> failed = true; goto raise }
  fi
}

#ifdef BUG_SLICES_OVERLAP
#define slice_of(r) 0
#else
#define slice_of(r) (r)
#endif

/* The sum of a slice of all ranks' data, written to all of them; base is rank 0's, ranks are `stride` apart. */
inline work(base, stride) {
  may_fail();
  sum = 0;
  for (peer : 0 .. N - 1) {
    load(base + peer * stride + slice_of(me));
    sum = sum | got
  };
  for (peer : 0 .. N - 1) { store(base + peer * stride + slice_of(me), sum) }
}

inline check_numbers(x) {
  sum = 0;
  for (peer : 0 .. N - 1) {
    load(NUMBER(peer, parity));
    sum = sum | got
  };
  assert(sum == x)
}

proctype Rank(byte me) {
  byte epoch, c, piece, half, slice, peer, got, sum;
  for (c : 0 .. CALLS - 1) {
    /* What the rank does with its data before the call. */
    if
    :: call[c] == kInPlace -> for (slice : 0 .. N - 1) { store(SHARED(me, slice), value_of(c, 0, 1 << me)) }
    :: else
    fi;

    /* The call is agreed on, and small data are shown. */
    place[me * 2 + (parity ^ TWO_COPIES)] = (call[c] == kInPlace || (call[c] == kMixed && me != N - 1) -> 1 : 0);
    if
    :: call[c] == kSmall -> store(SMALL(me, parity ^ TWO_COPIES), value_of(c, 0, 1 << me))
    :: else
    fi;
    meet(0);

    if
    :: call[c] == kSmall ->
      sum = 0;
      for (peer : 0 .. N - 1) {
        load(SMALL(peer, parity));
        sum = sum | got
      };
      assert(sum == value_of(c, 0, kAll))

    :: call[c] == kBroadcast ->
      half = 0;
      for (piece : 0 .. 2) {
        if
        :: me == 0 -> may_fail(); store(STAGING(0, half, 0), value_of(c, piece, 1))
        :: else
        fi;
#ifndef BUG_BROADCAST_WITHOUT_MEETING
        meet(0);
#endif
        if
        :: me != 0 -> load(STAGING(0, half, 0)); assert(got == value_of(c, piece, 1))
        :: else
        fi;
#ifndef BUG_BROADCAST_THROUGH_ONE_BUFFER
        half = 1 - half
#endif
      }

#ifdef BUG_EACH_RANK_GOES_BY_ITS_OWN_PLACE
    :: place[me * 2 + parity] == 1 ->
#else
    :: call[c] != kSmall && call[c] != kBroadcast && all_in_place ->
#endif
      work(SHARED(0, 0), N);
#ifndef BUG_NO_MEETING_AFTER_WORK_IN_PLACE
      meet(value_of(c, 0, 1 << me));
#endif
      check_numbers(value_of(c, 0, kAll));
      for (slice : 0 .. N - 1) {
        load(SHARED(me, slice));
        assert(got == value_of(c, 0, kAll))
      }

#ifdef BUG_EACH_RANK_GOES_BY_ITS_OWN_PLACE
    :: call[c] != kSmall && call[c] != kBroadcast && place[me * 2 + parity] == 0 ->
#else
    :: call[c] != kSmall && call[c] != kBroadcast && !all_in_place ->
#endif
      for (piece : 0 .. PIECES - 1) {
        for (slice : 0 .. N - 1) { store(STAGING(me, 0, slice), value_of(c, piece, 1 << me)) };
#ifndef BUG_NO_MEETING_BEFORE_WORK
        meet(0);
#endif
        work(STAGING(0, 0, 0), 2 * N);
#ifndef BUG_NO_MEETING_AFTER_WORK
        meet(value_of(c, piece, 1 << me));
#endif
        for (slice : 0 .. N - 1) {
          load(STAGING(me, 0, slice));
          assert(got == value_of(c, piece, kAll))
        }
      };
      check_numbers(value_of(c, PIECES - 1, kAll))
    fi
  };
  goto over;

raise:
  broken[me] = true;
  for (slice : 0 .. N - 1) { word[SHARED(me, slice)] = 255; }
over:
  skip
}

active proctype Calls() {
  atomic {
    for (drawn : 0 .. CALLS - 1) {
      if
      :: call[drawn] = kSmall
      :: call[drawn] = kStaged
      :: call[drawn] = kInPlace
      :: call[drawn] = kMixed
      :: call[drawn] = kBroadcast
      fi
    };
    run Rank(0);
    run Rank(1);
#if N == 3
    run Rank(2);
#endif
  }
}
