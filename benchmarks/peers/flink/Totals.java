import org.apache.flink.api.common.functions.AggregateFunction;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.state.AggregatingState;
import org.apache.flink.api.common.state.AggregatingStateDescriptor;
import org.apache.flink.api.common.typeinfo.PrimitiveArrayTypeInfo;
import org.apache.flink.api.java.tuple.Tuple2;
import org.apache.flink.api.java.tuple.Tuple3;
import org.apache.flink.runtime.state.VoidNamespace;
import org.apache.flink.runtime.state.VoidNamespaceSerializer;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.streaming.api.operators.BoundedOneInput;
import org.apache.flink.streaming.api.operators.KeyedProcessOperator;
import org.apache.flink.util.Collector;

/** Sum and count in one aggregating state: one search in the table for an event, the accumulator changed in place. */
final class Totals extends KeyedProcessFunction<Tuple2<String, Integer>, Tuple3<String, Integer, Long>, Long> {
    static final AggregatingStateDescriptor<Long, long[], long[]> STATE =
            new AggregatingStateDescriptor<>("totals", new Add(), PrimitiveArrayTypeInfo.LONG_PRIMITIVE_ARRAY_TYPE_INFO);
    private final boolean queryable;
    private transient AggregatingState<Long, long[]> state;

    Totals(boolean queryable) {
        this.queryable = queryable;
    }

    @Override
    public void open(OpenContext context) {
        if (queryable && !STATE.isQueryable()) STATE.setQueryable("totals");
        state = getRuntimeContext().getAggregatingState(STATE);
    }

    @Override
    public void processElement(Tuple3<String, Integer, Long> row, Context context, Collector<Long> out) throws Exception {
        state.add(row.f2);
    }

    private static final class Add implements AggregateFunction<Long, long[], long[]> {
        @Override
        public long[] createAccumulator() {
            return new long[2];
        }

        @Override
        public long[] add(Long cents, long[] into) {
            into[0] += cents;
            into[1]++;
            return into;
        }

        @Override
        public long[] getResult(long[] of) {
            return of;
        }

        @Override
        public long[] merge(long[] left, long[] right) {
            return new long[] {left[0] + right[0], left[1] + right[1]};
        }
    }

    /** Stops the clock at the end of the input, then adds up what is in state. */
    static final class Operator extends KeyedProcessOperator<Tuple2<String, Integer>, Tuple3<String, Integer, Long>, Long>
            implements BoundedOneInput {
        Operator(boolean queryable) {
            super(new Totals(queryable));
        }

        @Override
        public void endInput() throws Exception {
            Meter.end();
            long[] found = new long[3];
            getKeyedStateBackend().applyToAllKeys(VoidNamespace.INSTANCE, VoidNamespaceSerializer.INSTANCE, STATE, (key, state) -> {
                long[] totals = state.get();
                found[0]++;
                found[1] += totals[1];
                found[2] += totals[0];
            });
            Meter.tell(found[0], found[1], found[2]);
        }
    }
}
