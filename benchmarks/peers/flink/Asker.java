import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.Random;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.flink.api.common.ExecutionConfig;
import org.apache.flink.api.common.JobID;
import org.apache.flink.api.common.state.AggregatingState;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.java.tuple.Tuple2;
import org.apache.flink.queryablestate.client.QueryableStateClient;

/**
 * Keeps so many lookups of queryable state in flight and counts the answers: a key that is not there yet is an answer, too. A line on
 * standard input names a job, the next one ends its questions and is answered by their number.
 */
public final class Asker {
    private static final int FIRST_MONTH = 2025 * 12;

    public static void main(String[] arguments) throws Exception {
        QueryableStateClient client = new QueryableStateClient("127.0.0.1", Integer.parseInt(arguments[0]));
        client.setExecutionConfig(new ExecutionConfig());
        int flying = Integer.parseInt(arguments[1]);
        BufferedReader asked = new BufferedReader(new InputStreamReader(System.in));
        for (String job = asked.readLine(); job != null; job = asked.readLine()) {
            Round round = new Round(client, JobID.fromHexString(job));
            for (int each = 0; each < flying; each++) round.ask();
            asked.readLine();
            System.out.println(round.end() + " " + round.values.get());
        }
        System.exit(0);
    }

    private static final class Round {
        private final QueryableStateClient client;
        private final JobID job;
        private final AtomicLong answers = new AtomicLong();
        private final AtomicInteger underWay = new AtomicInteger();
        private final AtomicBoolean stopped = new AtomicBoolean();
        private final Random random = new Random(1);
        final AtomicLong values = new AtomicLong();

        Round(QueryableStateClient client, JobID job) {
            this.client = client;
            this.job = job;
        }

        void ask() {
            underWay.incrementAndGet();
            Tuple2<String, Integer> key = Tuple2.of(String.format("customer-%06d", random.nextInt(100_000)), FIRST_MONTH + random.nextInt(12));
            CompletableFuture<AggregatingState<Long, long[]>> answer =
                    client.getKvState(job, "totals", key, Types.TUPLE(Types.STRING, Types.INT), Totals.STATE);
            answer.whenComplete((state, error) -> {
                underWay.decrementAndGet();
                boolean unknown = error != null && String.valueOf(error).contains("UnknownKeyOrNamespace");
                if (error == null) values.incrementAndGet();
                if (error == null || unknown) answers.incrementAndGet();
                if (!stopped.get()) ask();
            });
        }

        long end() throws InterruptedException {
            stopped.set(true);
            for (int waited = 0; underWay.get() > 0 && waited < 300; waited++) Thread.sleep(10);
            return answers.get();
        }
    }
}
