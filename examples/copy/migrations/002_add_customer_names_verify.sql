SELECT 'customers' AS suite, 'the column name is there' AS "check", EXISTS (
    SELECT FROM information_schema.columns
    WHERE table_schema = 'public' AND table_name = 'customers' AND column_name = 'name'
) AS ok;
