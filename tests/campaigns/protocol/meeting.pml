/* The meeting of the ranks of one machine: NodeGroup::meet and all it calls (csrc/core/ranks/node_group.cpp).
 *
 * N ranks meet MEETINGS times. Meanwhile at most TROUBLES of these happen, each at any step: a rank's work fails and it
 * breaks the group up; a process dies, in any line; another thread of a rank interrupts it, or aborts its process, in
 * the middle of a call; a rank leaves and does not wait for the others. With TIMEOUT any wait may end at any time.
 * Without it nobody's patience ends, so that a wait for ever is found as a state with no way out.
 *
 * Shown: who passes a meeting finds all ranks there, and of each the whole slot of this meeting, not one being filled;
 * a cause that is read is whole; a group that was broken up before a rank's meeting began makes it raise; no rank
 * raises unless one of the troubles happened; no rank sleeps through an arrival; nobody waits for ever.
 *
 * Assumed:
 * - Sequential consistency. The C++ gives as much where it counts: `arrived` and `sleepers`, where each side writes one
 *   and reads the other, are sequentially consistent there; all else is written before a store that releases (arrived,
 *   broken) and read after a load that acquires it, and is overwritten only after another meeting.
 * - A word of a slot is written at once; contents of several words are two steps here (lo, hi), for writer and reader.
 * - Epochs are modulo WRAP = 4 in place of 2^32. Ranks are never more than one epoch apart (shown: `whole`), so that
 *   three neighbours must be told from each other, and a multiple of two keeps odd and even: any such number will do.
 * - FUTEX_WAIT compares and falls asleep at once, and may wake up for no reason. Naps of 50 ms end a sleep when there is
 *   something to see for which nobody wakes the sleeper: here a sleeper wakes as soon as that is so, and not before,
 *   because to look in vain changes nothing. It is not woken by a nap for an arrival: that must be a wake-up.
 * - One step reads or writes one word, except where steps could be one without loss: words that only ever change once
 *   (broken, and arrived while it is awaited) are looked through in one step, in any order. With three ranks, steps are
 *   `coarse`: several words of one slot are one, which two ranks have shown to be whole.
 * - A process that died is seen as ended (kill, ESRCH) later than all it has written. One that is not reaped, or whose
 *   number is used again, looks alive; then a time-out is what ends the wait.
 */
#ifndef N
#define N 3
#endif
#ifndef MEETINGS
#define MEETINGS 3
#endif
#ifndef TROUBLES
#define TROUBLES 1
#endif
#ifndef WRAP
#define WRAP 4
#endif
#define FIRST (WRAP - 2) /* the epochs wrap around at the second meeting */

#ifdef TIMEOUT
#define patience_ends true
#else
#define patience_ends leaving /* a rank that leaves never waits long */
#endif

#ifdef BUG_EPOCHS_COMPARED_AS_THEY_ARE
#define reached(a, e) ((a) >= (e))
#else
#ifdef BUG_EPOCHS_MUST_BE_EQUAL
#define reached(a, e) ((a) == (e))
#else
#define reached(a, e) ((((a) + WRAP - (e)) % WRAP) < WRAP / 2)
#endif
#endif

#ifdef BUG_ONE_COPY_OF_A_SLOT
#define at(r, e) (2 * (r))
#else
#define at(r, e) (2 * (r) + (e) % 2)
#endif

/* What a sleeper looks at besides whom it waits for. */
#ifdef BUG_SLEEPERS_DO_NOT_LOOK_AT_OTHERS
#define sees_broken(r) false
#else
#define sees_broken(r) broken[r]
#endif
#ifdef BUG_ENDED_PROCESSES_NOT_LOOKED_AT
#define sees_ended(r) false
#else
#define sees_ended(r) dead[r]
#endif

#define FAILED 1
#define EXITED 2
#define LATE 3
#define kLeft 64

/* The slots. */
byte arrived[N] = FIRST;
bool broken[N];
byte sleepers[N];
byte lo[2 * N], hi[2 * N]; /* what a rank shows: the number of the meeting, and whether it leaves */
byte cause_lo[N], cause_hi[N];

/* The processes, and the kernel. */
bool dead[N];
bool interrupted[N];
bool locked[N];   /* NodeGroup's mutex, for break_up */
byte asleep[N];   /* on whose `arrived`, plus one */

/* What the checks know. */
byte begun[N];
byte troubles = 0;
bool reason; /* for which ranks may raise */
bool lost;   /* a rank has failed or raised, and makes no more calls */

#if N == 2
#define any_broken (broken[0] || broken[1])
#define sees_any (sees_broken(0) || sees_broken(1))
#define all_begun(m) (begun[0] >= m && begun[1] >= m)
#define all_reached(e) (reached(arrived[0], e) && reached(arrived[1], e))
#define or_third(guard, then)
#define and_third(condition)
#define coarse
#else
#define any_broken (broken[0] || broken[1] || broken[2])
#define sees_any (sees_broken(0) || sees_broken(1) || sees_broken(2))
#define all_begun(m) (begun[0] >= m && begun[1] >= m && begun[2] >= m)
#define all_reached(e) (reached(arrived[0], e) && reached(arrived[1], e) && reached(arrived[2], e))
#define or_third(guard, then) :: guard -> then
#define and_third(condition) && condition
#define coarse atomic
#endif

/* Whether rank r sleeps until `me` arrives, which it has done. */
#define sleeps_through(r) (asleep[r] == me + 1 && begun[r] <= begun[me])

inline wake_all(r) {
  if :: asleep[0] == r + 1 -> asleep[0] = 0 :: else fi;
  if :: asleep[1] == r + 1 -> asleep[1] = 0 :: else fi;
#if N == 3
  if :: asleep[2] == r + 1 -> asleep[2] = 0 :: else fi
#endif
}

inline break_up(r, why) {
  coarse {
#ifndef BUG_TWO_THREADS_BREAK_UP
    atomic { !locked[r] -> locked[r] = true };
#endif
    if
    :: broken[r]
    :: else ->
#ifdef BUG_BROKEN_BEFORE_ITS_CAUSE
      broken[r] = true;
#endif
      cause_lo[r] = why;
      cause_hi[r] = why;
      d_step {
        broken[r] = true;
        wake_all(r)
      }
    fi;
    locked[r] = false
  }
}

/* Something goes wrong: ranks may raise. */
inline happens() {
  troubles++;
  reason = true
}

proctype Rank(byte me) {
  byte epoch = FIRST, meeting = 0, peer, seen, other;
  bool ended, known, leaving, left, sleeper;
  {
    do
    :: meeting < MEETINGS && !left ->
      /* What the rank does between two meetings. */
      if
      :: true
      :: atomic { troubles < TROUBLES -> happens() };
#ifndef BUG_FAILS_IN_SILENCE
        break_up(me, FAILED);
#endif
        goto gone
      :: atomic { troubles < TROUBLES -> troubles++; leaving = true }
      fi;

      /* meet */
      coarse {
        d_step {
          meeting++;
          epoch = (epoch + 1) % WRAP;
          known = false;
#ifdef BUG_ARRIVES_BEFORE_ITS_SLOT_IS_FULL
          begun[me] = meeting;
          known = any_broken || lost;
          arrived[me] = epoch
#endif
        };
        lo[at(me, epoch)] = meeting + (leaving -> kLeft : 0);
        hi[at(me, epoch)] = meeting + (leaving -> kLeft : 0);
#ifdef BUG_SLEEPERS_LOOKED_AT_BEFORE_ARRIVAL
        seen = sleepers[me];
#endif
#ifndef BUG_ARRIVES_BEFORE_ITS_SLOT_IS_FULL
        d_step {
          begun[me] = meeting;
          known = any_broken || lost;
          arrived[me] = epoch
        };
#endif
        d_step {
          if
#ifdef BUG_SLEEPERS_LOOKED_AT_BEFORE_ARRIVAL
          :: seen != 0 -> wake_all(me)
#else
          :: sleepers[me] != 0 -> wake_all(me)
#endif
          :: else
          fi;
          seen = 0;
          assert(!sleeps_through(0) && !sleeps_through(1) and_third(!sleeps_through(2)))
        };
        peer = 0
      };

      do
      :: peer < N ->
        if
        :: peer == me -> goto next
        :: else
        fi;
        /* wait_for: looks, then sleeps; it may be held up just before it would have seen the arrival */
        coarse {
          if
          :: reached(arrived[peer], epoch) -> goto next
          :: true
          fi;
          d_step { sleepers[peer]++; sleeper = true }
        };
again:
        coarse {
#ifndef BUG_ENDED_LOOKED_AT_LAST
          ended = sees_ended(peer);
#endif
          atomic {
            seen = arrived[peer];
            if
            :: reached(seen, epoch) -> goto next
            :: else
            fi
          }
        };
#ifdef BUG_ENDED_LOOKED_AT_LAST
        ended = sees_ended(peer);
#endif
        coarse {
          if
          :: atomic { interrupted[me] -> reason = true }; break_up(me, EXITED)
          :: !interrupted[me]
          fi;
          atomic {
            if
            :: sees_broken(0) -> other = 0; goto raise
            :: sees_broken(1) -> other = 1; goto raise
            or_third(sees_broken(2), other = 2; goto raise)
            :: else
            fi;
            if
            :: ended -> assert(reason); goto give_up
            :: else
            fi
          };
          atomic {
            if
            :: patience_ends && all_reached(epoch) -> goto next
            :: patience_ends && !all_reached(epoch) -> reason = true; goto give_up
            :: true
            fi
          };
          /* FUTEX_WAIT */
          atomic {
            if
            :: arrived[peer] == seen -> asleep[me] = peer + 1
            :: else -> goto again
            fi
          }
        };
        atomic {
          (asleep[me] == 0 || sees_any || interrupted[me] || sees_ended(peer) || patience_ends) -> asleep[me] = 0;
          goto again
        };
next:
        atomic {
          if :: sleeper -> sleepers[peer]-- :: else fi;
          sleeper = false;
          seen = 0;
          ended = false;
          peer++
        }
      :: else -> break
      od;

      /* raise_if_broken */
      atomic {
        if
#ifndef BUG_BROKEN_ONLY_SEEN_ASLEEP
        :: broken[0] -> other = 0; goto raise
        :: broken[1] -> other = 1; goto raise
        or_third(broken[2], other = 2; goto raise)
#endif
        :: else -> peer = 0
        fi;
        /* The meeting is passed. */
        assert(all_begun(meeting));
        assert(!known) /* a failure is seen at the current meeting, or at the next */
      };
      coarse {
        do
        :: peer < N ->
          seen = lo[at(peer, epoch)];
          atomic {
            assert(seen == hi[at(peer, epoch)] && seen % kLeft == meeting); /* whole, and of this meeting */
            left = left || seen >= kLeft;
            seen = 0;
            peer++
          }
        :: else -> peer = 0; break
        od
      }
    :: else -> break
    od;
    dead[me] = true; /* the process ends, as it should */
    goto over;

raise:
    atomic {
      if :: sleeper -> sleepers[peer]-- :: else fi;
      assert(reason); /* a rank that leaves disturbs nobody */
      seen = cause_lo[other]
    };
    assert(seen != 0 && seen == cause_hi[other]); /* the cause is whole */
give_up:
#ifndef BUG_RAISES_IN_SILENCE
    break_up(me, LATE); /* meet breaks up before it raises, whatever it raises */
#endif
gone:
    lost = true;
over:
    skip
  } unless { dead[me] }
}

/* Another thread of rank 0, and death. */
active proctype Others() {
  atomic {
    run Rank(0);
    run Rank(1);
#if N == 3
    run Rank(2);
#endif
  };
  {
    if
    :: atomic { troubles < TROUBLES -> happens() };
      if
      :: interrupted[0] = true
      :: true -> break_up(0, EXITED); dead[0] = true /* abort */
      :: dead[1] = true
      or_third(true, dead[2] = true)
      fi
    :: true
    fi
  } unless { dead[0] };
  do
  :: atomic { troubles < TROUBLES -> happens(); dead[0] = true }
  :: break
  od
}
