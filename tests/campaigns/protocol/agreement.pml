/* How ranks agree on a call, fail, disagree and leave: NodeCommunicator (csrc/core/ranks/node_communicator.cpp) with
 * outcome_of and Standing (agreement.cpp).
 *
 * N ranks make CALLS calls each, every rank its own choice of allreduce (with data, so that it ends in a meeting),
 * barrier, fail and leave, and then leave. They go on after errors of others and after running out of memory, as users
 * may; a rank whose calls are refused from now on ends, or lives on and makes none. At most TROUBLES of these happen: a
 * rank runs out of memory, anywhere; its work on data fails; its process dies, in any line. With TIMEOUT any wait may
 * end; without it only a leaving rank's.
 *
 * Shown: ranks that pass the same meeting are in the same part of the same call (or all in the words after a
 * disagreement), read each other's calls, messages and words of that meeting, whole, so that they come to the same outcome; a rank
 * whose calls are refused has told the others, so that without TIMEOUT nobody waits for ever.
 *
 * Assumed:
 * - Meetings do what meeting.pml shows; here they are an arrival and a wait, and epochs do not wrap around.
 * - Sequential consistency: all that is read was written before an arrival that has been seen (see exchange.pml).
 * - Contents of a slot are two words, in two steps, for who writes and who reads; each has the number of its meeting.
 */
#ifndef N
#define N 2
#endif
#ifndef CALLS
#define CALLS 3
#endif
#ifndef TROUBLES
#define TROUBLES 1
#endif

#ifdef TIMEOUT
#define patience_ends true
#else
#define patience_ends (call == kLeave)
#endif

#define kReduce 1
#define kBarrier 2
#define kFail 3
#define kLeave 4

/* Parts of a call, each with a meeting at its end. */
#define kAgree 1
#define kWords 2
#define kData 3

#define at(e) (2 * me + (e) % 2)
#define of(r) (2 * (r) + epoch % 2)

byte arrived[N];
bool broken[N];
bool dead[N];
byte call_lo[2 * N], call_hi[2 * N]; /* 8 times the meeting, and the call */
byte message_lo[2 * N], message_hi[2 * N];
byte words[2 * N];

/* What the checks know. */
byte part[2 * N];
byte troubles;

#if N == 2
#define any_broken (broken[0] || broken[1])
#define all_arrived (arrived[0] >= epoch && arrived[1] >= epoch)
#define one_has_ended ((dead[0] && arrived[0] < epoch) || (dead[1] && arrived[1] < epoch))
#define coarse
#else
#define any_broken (broken[0] || broken[1] || broken[2])
#define all_arrived (arrived[0] >= epoch && arrived[1] >= epoch && arrived[2] >= epoch)
#define one_has_ended \
  ((dead[0] && arrived[0] < epoch) || (dead[1] && arrived[1] < epoch) || (dead[2] && arrived[2] < epoch))
#define coarse atomic
#endif

/* A meeting. */
inline arrive(what) {
  atomic {
    epoch++;
    part[of(me)] = what;
    arrived[me] = epoch
  }
}
/* `raised` if it does not pass. The group has been broken up then. */
inline pass(what) {
  atomic {
    if
    :: all_arrived -> raised = any_broken
    :: !all_arrived && (any_broken || one_has_ended || patience_ends) -> raised = true
    fi
  };
  if
  :: raised ->
#ifdef BUG_OUT_OF_MEMORY_IN_A_MEETING_IS_NOT_TOLD
    /* The message of the error cannot be made: what is raised is no CommunicationError, and nobody learns of it. */
    if
    :: atomic { troubles < TROUBLES -> troubles++; forgotten = true }
    :: broken[me] = true
    fi
#else
    broken[me] = true
#endif
  :: else ->
    atomic {
      for (peer : 0 .. N - 1) { assert(part[of(peer)] == what) }
      peer = 0
    }
  fi
}

#define out_of_memory atomic { troubles < TROUBLES -> troubles++ }

proctype Rank(byte me) {
  byte epoch, call, calls, peer, seen;
  bool raised, forgotten, same = true, left;
  short failed = -1;
  {
    do
    :: calls <= CALLS ->
      atomic {
        if
        :: calls < CALLS -> call = kReduce
        :: calls < CALLS -> call = kBarrier
        :: calls < CALLS -> call = kFail
        :: call = kLeave
        fi;
        calls++
      };

      coarse {
        /* fail */
        message_lo[at(epoch + 1)] = (call == kFail -> epoch + 1 : 0); /* 0 makes fewer states */
        message_hi[at(epoch + 1)] = (call == kFail -> epoch + 1 : 0);

        /* agree */
        if
        :: true
        :: out_of_memory; goto again
        fi;
        call_lo[at(epoch + 1)] = (epoch + 1) * 8 + call;
        call_hi[at(epoch + 1)] = (epoch + 1) * 8 + call;
        arrive(kAgree)
      };
      pass(kAgree);
      if
      :: raised && forgotten -> forgotten = false; goto again
      :: raised && !forgotten -> goto refused
      :: else
      fi;
      coarse {
        do
        :: peer < N ->
          seen = call_lo[of(peer)];
          atomic {
            assert(seen == call_hi[of(peer)] && seen / 8 == epoch);
            seen = seen % 8;
            same = same && seen == call;
            left = left || seen == kLeave;
            failed = (failed < 0 && seen == kFail -> peer : failed);
            peer++
          }
        :: else -> peer = 0; break
        od
      };
      if
      :: failed >= 0 && (call == kFail || call == kLeave)
      :: failed >= 0 && call != kFail && call != kLeave ->
        seen = message_lo[of(failed)];
        assert(seen == epoch && seen == message_hi[of(failed)])
      :: failed < 0 && !same ->
        coarse {
          if
          :: true
#ifdef BUG_WHO_LEAVES_SAYS_NO_WORDS
          :: call == kLeave -> goto refused
#endif
          :: out_of_memory;
#ifndef BUG_OUT_OF_MEMORY_AMONG_WORDS_IS_NOT_TOLD
            broken[me] = true;
#endif
            goto refused
          fi;
          words[at(epoch + 1)] = epoch + 1;
          call_lo[at(epoch + 1)] = (epoch + 1) * 8 + call;
          call_hi[at(epoch + 1)] = (epoch + 1) * 8 + call;
          arrive(kWords)
        };
        pass(kWords);
        if
        :: !raised -> atomic { for (peer : 0 .. N - 1) { assert(words[of(peer)] == epoch) } }
        :: else
        fi;
        goto refused
      :: failed < 0 && same && call == kReduce ->
        coarse {
          if
          :: true
          :: out_of_memory;
#ifndef BUG_WORK_FAILS_IN_SILENCE
            broken[me] = true;
#endif
            goto refused
          fi;
          arrive(kData)
        };
        pass(kData);
        if
        :: raised -> goto refused
        :: else
        fi
      :: failed < 0 && same && call != kReduce
      fi;
      if
#ifndef BUG_CALLS_AFTER_ONE_HAS_LEFT
      :: left -> goto refused
#endif
      :: call == kLeave -> goto refused
      :: else
      fi;
again:
      atomic {
        same = true;
        left = false;
        failed = -1;
        seen = 0;
        raised = false
      }
    :: else -> break
    od;

refused:
    atomic { calls = 0; call = 0; seen = 0; peer = 0; same = true; left = false; failed = -1; raised = false };
#ifdef BUG_MESSAGE_OF_A_RANK_WHOSE_CALLS_ARE_REFUSED
    if
    :: message_lo[at(epoch + 1)] = 255; message_hi[at(epoch + 1)] = 255
    :: true
    fi;
#endif
    if
    :: dead[me] = true
    :: true
    fi
  } unless { dead[me] }
}

active proctype Death() {
  atomic {
    run Rank(0);
    run Rank(1);
#if N == 3
    run Rank(2);
#endif
  };
  if
  :: atomic { troubles < TROUBLES -> troubles++; if :: dead[0] = true :: dead[1] = true fi }
  :: true
  fi
}
